// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/isa.h"
#include "attention.h"

namespace edgeops::ragged {

const AttentionKernel& attention_kernel(Isa isa, Storage storage);

}  // namespace edgeops::ragged
