// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/isa.h"
#include "attention.h"

namespace edgeops::ragged {

// Bytes of scratch a sequence needs, and the kernel for one sequence and kv head.
struct AttentionGradKernel {
  int64_t (*scratch)(const AttentionGradCall&, int64_t seq);
  void (*run)(const AttentionGradCall&, int64_t seq, int64_t kv_head, char* scratch);
};

const AttentionGradKernel& attention_grad_kernel(Isa isa, Storage storage);

}  // namespace edgeops::ragged
