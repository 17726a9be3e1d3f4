// SPDX-License-Identifier: Apache-2.0
// pack.cu on the CPU against a plain loop, in buffers of exactly the size needed so that a sanitizer sees every
// overrun. Built and run by test_cuda_compile.py; prints the number of cases and exits with 0 when all agree.
#include "pack.inl"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

using edgeops::ragged::RowCopy;

struct Case {
  std::vector<int64_t> offsets;
  int64_t length, total, row_bytes, element, misalign;
};

template <typename Offset>
bool run(const Case& c, const unsigned char* fill, std::mt19937& random, bool unpack) {
  const int64_t n = static_cast<int64_t>(c.offsets.size()) - 1;
  const std::vector<Offset> offsets(c.offsets.begin(), c.offsets.end());
  const int64_t padded_bytes = n * c.length * c.row_bytes, packed_bytes = c.total * c.row_bytes;
  std::vector<unsigned char> padded(padded_bytes + c.misalign), packed(packed_bytes + c.misalign);
  for (auto* buffer : {&padded, &packed}) {
    for (auto& byte : *buffer) {
      byte = static_cast<unsigned char>(random());
    }
  }
  RowCopy copy{};
  copy.offsets = offsets.data();
  copy.wide_offsets = sizeof(Offset) == 8;
  copy.num_sequences = n;
  copy.length = c.length;
  copy.total = c.total;
  copy.row_bytes = copy.padded_stride_row = copy.packed_stride_row = c.row_bytes;
  copy.padded_stride_sequence = c.length * c.row_bytes;
  for (int i = 0; i < 16; ++i) {
    copy.fill[i] = fill[i % c.element];
  }
  unsigned char* const padded_rows = padded.data() + c.misalign;
  unsigned char* const packed_rows = packed.data() + c.misalign;
  auto expected = unpack ? padded : packed;
  for (int64_t b = 0; b < n; ++b) {
    const int64_t start = std::min(std::max<int64_t>(c.offsets[b], 0), c.total);
    const int64_t end = std::min(std::max(c.offsets[b + 1], start), c.total);
    for (int64_t i = 0; i < c.length; ++i) {
      for (int64_t j = 0; j < c.row_bytes; ++j) {
        const int64_t at_padded = c.misalign + (b * c.length + i) * c.row_bytes + j;
        const int64_t at_packed = c.misalign + (start + i) * c.row_bytes + j;
        const bool inside = i < end - start;
        if (unpack) {
          expected[at_padded] = inside ? packed[at_packed] : fill[j % c.element];
        } else if (inside) {
          expected[at_packed] = padded[at_padded];
        }
      }
    }
  }
  copy.source = unpack ? packed_rows : padded_rows;
  copy.target = unpack ? padded_rows : packed_rows;
  const char* error = unpack ? launch_unpack(copy, nullptr) : launch_pack(copy, nullptr);
  return error == nullptr && (unpack ? padded : packed) == expected;
}

}  // namespace

int main() {
  std::mt19937 random(42);
  auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
  const int64_t widths[] = {1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 48, 4096, 5000};
  int cases = 0;
  for (int i = 0; i < 400; ++i) {
    Case c{{0}, 0, 0, 0, 1, 0};
    const int64_t n = below(5);
    for (int64_t b = 0; b < n; ++b) {
      const int64_t l = below(3) == 0 ? 0 : below(9);
      c.offsets.push_back(c.offsets.back() + l);
      c.length = std::max(c.length, l);
    }
    c.total = c.offsets.back();
    c.length += below(3);
    c.row_bytes = widths[below(13)];
    while (c.element < 8 && c.row_bytes % (2 * c.element) == 0 && below(2)) {
      c.element *= 2;
    }
    c.misalign = below(3) * c.element;
    // overlapping targets of decreasing offsets have no defined result, so packing keeps them in order
    const bool wrong = below(4) == 0 && n > 0;
    if (wrong) {
      c.offsets[below(n + 1)] = below(2) ? (int64_t{1} << 20) : -7;
    }
    unsigned char fill[16];
    for (auto& byte : fill) {
      byte = static_cast<unsigned char>(random());
    }
    for (const bool unpack : {true, false}) {
      const bool same = below(2) ? run<int64_t>(c, fill, random, unpack) : run<int32_t>(c, fill, random, unpack);
      if (!same && (unpack || !wrong)) {
        std::printf(
            "%s case %d differs: %lld sequences, row of %lld bytes\n", unpack ? "unpack" : "pack", i,
            static_cast<long long>(n), static_cast<long long>(c.row_bytes));
        return 1;
      }
      ++cases;
    }
  }
  std::printf("%d cases agree\n", cases);
  return 0;
}
