// SPDX-License-Identifier: Apache-2.0
// The batches of a flush and the tensors they name, as programs see them: places become matrices, and every integer is
// checked before memory is touched.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../common/check.h"
#include "../common/storage.h"
#include "checks.h"
#include "program.h"

namespace edgeops::batching {

using torch::headeronly::ScalarType;

constexpr const char* kRun = "batches_run";
constexpr int64_t kMostRows = int64_t{1} << 31;

[[noreturn]] inline void broken(const std::string& what) {
  fail(
      "RuntimeError", kRun, "programs must fit their batches and tensors", what,
      "Report it: a cell's program is wrong.");
}

inline void expect(bool good, const char* what) {
  if (!good) {
    broken(what);
  }
}

// A tensor as the steps see it; matrices have dense rows.
struct Table {
  char* data;
  int64_t dims, rows, cols, depth, stride, bytes;
  ScalarType type;
};

inline Table table_of(const Tensor& x) {
  Table t{static_cast<char*>(const_cast<void*>(x.const_data_ptr())),
          x.dim(),
          1,
          1,
          1,
          0,
          x.element_size(),
          x.scalar_type()};
  expect(x.is_cpu(), "a tensor that is not on the CPU");
  if (t.dims == 3) {
    t.depth = x.size(2);
    t.rows = x.size(0);
    t.cols = x.size(1);
    expect(x.is_contiguous(), "a packed weight that is not dense");
  } else if (t.dims == 2) {
    t.rows = x.size(0);
    t.cols = x.size(1);
    t.stride = x.stride(0);
    expect(t.cols <= 1 || t.rows == 0 || x.stride(1) == 1, "a table without dense rows");
  } else if (t.dims == 1) {
    t.cols = x.size(0);
    expect(t.cols <= 1 || x.stride(0) == 1, "a vector that is not dense");
  } else {
    broken("a tensor of other than 1 to 3 dimensions");
  }
  return t;
}

template <class T>
struct Array {
  const T* data;
  int64_t size;
  T at(int64_t i) const {
    expect(i >= 0 && i < size, "a position outside an array");
    return data[i];
  }
  const T* range(int64_t i, int64_t count) const {
    expect(i >= 0 && count >= 0 && i <= size && count <= size - i, "a range outside an array");
    return data + i;
  }
};

template <class T>
Array<T> array_of(const Tensor& x, ScalarType type, const char* name) {
  require_tensor(x, kRun, name);
  EDGEOPS_CHECK(
      x.scalar_type() == type && x.dim() == 1 && x.is_cpu() && x.is_contiguous(), ValueError, kRun,
      std::string(name) + " must be a dense vector of " + torch::headeronly::toString(type) + " on the CPU",
      dtype_of(x) + " of shape " + shape_of(x), "Pass what the recording's place() gave.");
  return {static_cast<const T*>(x.const_data_ptr()), x.numel()};
}

// One row a call: rows of a table by number, or one after the other where there are no numbers.
struct View {
  char* data;  // the first of the columns; of the first row where there are no numbers
  int64_t stride;
  const int32_t* rows;
  int64_t width, count;
  ScalarType type;
};

inline int64_t size_of(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

// A flush, and the batch of it that runs.
class Batches {
 public:
  Array<int64_t> code, classes, records, offsets;
  Array<int32_t> rows, makers;
  Array<int64_t> numbers, starts;
  uint8_t* reached = nullptr;
  int64_t reached_size = 0, first_batch = 0;
  std::vector<Table> tables;

 protected:
  std::vector<const int64_t*> batch_;  // records: one, or all of a type
  int64_t type_ = 0, m_ = 0, base_ = 0, slots_ = 0, outs_ = 0, first_tensor_ = 0;
  std::map<int64_t, std::vector<char>> copies_;  // of the running batch, by operand
  std::vector<std::vector<int32_t>> lists_;      // row numbers made for the running batch

  static const int64_t* operand_of(const int64_t* record, int64_t slot) {
    return record + 6 + 8 * slot;
  }
  static const int64_t* result_of(const int64_t* record, int64_t which) {
    return record + 6 + 8 * record[4] + 2 * which;
  }

  int64_t types() const {
    const int64_t count = code.at(0);
    expect(count >= 0 && count <= (code.size - kHead) / kTypeHead, "more types than code");
    return count;
  }

  void take(int64_t b) {
    const int64_t at = offsets.at(b), length = records.at(at);
    const int64_t* r = records.range(at, length);
    expect(
        length >= 6 && r[4] >= 0 && r[4] <= length && r[5] >= 0 && r[5] <= length && length == 6 + 8 * r[4] + 2 * r[5],
        "a record of another length");
    batch_.assign(1, r);
    copies_.clear();
    type_ = r[1];
    expect(type_ >= 0 && type_ < types(), "a type without a program");
    expect(r[2] >= 0 && r[2] <= kMostRows && r[3] >= 0 && r[3] <= kMostRows, "a number of rows that cannot be");
    m_ = r[2];
    base_ = code.at(1) != 0 ? r[3] : 0;
    slots_ = r[4];
    outs_ = r[5];
    first_tensor_ = code.at(kHead + kTypeHead * type_);
    for (int64_t s = 0; s < slots_; ++s) {
      const int64_t* o = operand_of(r, s);
      expect(o[3] >= 0 && o[3] <= kMostRows && o[4] >= -1 && o[4] <= kMostRows, "an operand without rows");
      expect(o[0] == 1 || o[3] == m_, "an operand with other rows than its batch");
    }
  }

  const Table& tensor(int64_t local) const {
    const auto count = static_cast<int64_t>(tables.size());
    expect(
        local >= 0 && local < count && first_tensor_ >= 0 && first_tensor_ < count - local,
        "a tensor that is not there");
    return tables[first_tensor_ + local];
  }

  // Tensor of a class, or nullptr.
  const Table* of_class(int64_t number, int64_t which) const {
    expect(number >= 0 && number < classes.size / kClass, "a class that is not there");
    const int64_t at = classes.at(kClass * number + which);
    expect(at < static_cast<int64_t>(tables.size()), "a table that is not there");
    return at < 0 ? nullptr : &tables[at];
  }

  View view(const Table& t, int64_t first, const int32_t* list, int64_t count, int64_t col, int64_t width) const {
    expect(t.dims == 2, "a place that is not a matrix");
    const int64_t columns = width < 0 ? t.cols - col : width;
    expect(
        col >= 0 && columns >= 0 && col <= t.cols && columns <= t.cols - col && count >= 0,
        "columns outside of a tensor");
    if (list == nullptr) {
      expect(first >= 0 && first <= t.rows && count <= t.rows - first, "rows outside of a tensor");
      return {t.data + (first * t.stride + col) * t.bytes, t.stride, nullptr, columns, count, t.type};
    }
    uint32_t largest = 0;  // negative numbers are large ones here
    for (int64_t i = 0; i < count; ++i) {
      largest = static_cast<uint32_t>(list[i]) > largest ? static_cast<uint32_t>(list[i]) : largest;
    }
    expect(count == 0 || static_cast<int64_t>(largest) < t.rows, "a row number outside of a tensor");
    return {t.data + col * t.bytes, t.stride, list, columns, count, t.type};
  }

  // Rows of operand `slot` in all records of the running batch: as a first row, or as a list.
  std::pair<int64_t, const int32_t*> rows_of(int64_t slot) {
    const int64_t* o = operand_of(batch_[0], slot);
    int64_t next = o[4];
    for (const int64_t* record : batch_) {
      const int64_t* x = operand_of(record, slot);
      next = next >= 0 && x[4] == next ? next + x[3] : -1;
    }
    if (next >= 0) {
      return {o[4], nullptr};
    }
    if (batch_.size() == 1) {
      return {-1, rows.range(o[2], o[3])};
    }
    lists_.emplace_back();
    for (const int64_t* record : batch_) {
      const int64_t* x = operand_of(record, slot);
      if (x[4] >= 0) {
        for (int64_t i = 0; i < x[3]; ++i) {
          lists_.back().push_back(static_cast<int32_t>(x[4] + i));
        }
      } else {
        const int32_t* list = rows.range(x[2], x[3]);
        lists_.back().insert(lists_.back().end(), list, list + x[3]);
      }
    }
    return {-1, lists_.back().data()};
  }

  // An integer operand of the running batch, every number below `limit`.
  const int32_t* integers(int64_t slot, int64_t limit, const char* name, const char* advice) {
    expect(slot >= 0 && slot < slots_, "an operand that is not there");
    lists_.emplace_back();
    for (const int64_t* record : batch_) {
      const int64_t* x = operand_of(record, slot);
      expect(x[0] == 2, "names that are not integers");
      const int64_t* given = numbers.range(x[2], x[3]);
      for (int64_t i = 0; i < x[3]; ++i) {
        if (given[i] < 0 || given[i] >= limit) {
          fail(
              "ValueError", ("batching cell #" + std::to_string(type_)).c_str(),
              std::string(name) + " must lie in 0.." + std::to_string(limit - 1), std::to_string(given[i]), advice);
        }
        lists_.back().push_back(static_cast<int32_t>(given[i]));
      }
    }
    return lists_.back().data();
  }

  // Listed rows of an operand one after the other, copied once a batch.
  View copied(const View& v, int64_t slot, const Table& t, int64_t col) {
    std::vector<char>& room = copies_[slot];
    const int64_t bytes = t.cols * t.bytes;
    if (room.empty()) {
      room.resize(static_cast<size_t>(v.count * bytes));
      for (int64_t i = 0; i < v.count; ++i) {
        std::memcpy(room.data() + i * bytes, t.data + v.rows[i] * t.stride * t.bytes, static_cast<size_t>(bytes));
      }
    }
    return {room.data() + col * t.bytes, t.cols, nullptr, v.width, v.count, v.type};
  }

  // The matrix that a place stands for; count -1 where there is none.
  View place(const int64_t* p) {
    expect(!batch_.empty(), "a place without a batch");
    const auto where = static_cast<Where>(p[0]);
    const int64_t slot = p[1], col = p[3], width = p[4];
    switch (where) {
      case Where::operand:
      case Where::d_operand: {
        expect(slot >= 0 && slot < slots_, "an operand that is not there");
        const int64_t* o = operand_of(batch_[0], slot);
        expect(o[0] == 0 || o[0] == 1 || o[0] == 3, "an operand without rows");
        const Table* t = of_class(o[1], (o[0] == 3 ? 2 : 0) + (where == Where::d_operand));
        if (t == nullptr) {
          expect(where == Where::d_operand, "a class without a table");
          return {nullptr, 0, nullptr, 0, -1, ScalarType::Float};
        }
        const auto [first, list] = rows_of(slot);
        int64_t count = 0;
        for (const int64_t* record : batch_) {
          count += operand_of(record, slot)[3];
        }
        const View found = view(*t, first, list, count, col, width);
        return where == Where::operand && list != nullptr && code.at(2) != 0 ? copied(found, slot, *t, col) : found;
      }
      case Where::result:
      case Where::d_result: {
        expect(slot >= 0 && slot < outs_, "a result that is not there");
        expect(batch_.size() == 1, "results of several batches");
        const int64_t* r = result_of(batch_[0], slot);
        const Table* t = of_class(r[0], where == Where::d_result);
        expect(t != nullptr, "a class without a table");
        return view(*t, r[1], nullptr, m_, col, width);
      }
      case Where::kept:
      case Where::d_kept:
        return view(tensor(p[2]), base_, nullptr, m_, col, width);
      case Where::room:
        return view(tensor(p[2]), 0, nullptr, m_, col, width);
      case Where::named:
        return view(
            tensor(p[2]), 0, integers(slot, tensor(p[2]).rows, "ids", "Check num_embeddings and the vocabulary."), m_,
            col, width);
    }
    broken("an unknown place");
  }
};

}  // namespace edgeops::batching
