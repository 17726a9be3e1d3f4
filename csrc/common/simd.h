// SPDX-License-Identifier: Apache-2.0
// What the wide regions need from outside, included before any of them: intrinsics and scalar half conversions.
#pragma once

#include <cstdint>

#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define EDGEOPS_INLINE static inline __attribute__((always_inline))
#define EDGEOPS_INLINE_MEMBER inline __attribute__((always_inline))
