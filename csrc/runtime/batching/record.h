// SPDX-License-Identifier: Apache-2.0
// What a session has recorded: calls of cells, their operands, and where their results stand.
#pragma once

#include <cstdint>
#include <vector>

#include "depth.h"
#include "graph.h"

namespace edgeops::batching {

// How one operand of a cell call is given. Kind and class together are the operand's part of a signature.
enum class Operand : int32_t {
  value = 0,   // a result of another cell: its value id
  list = 1,    // a list of results, of any length: their number and their value ids
  number = 2,  // a Python integer
  tensor = 3,  // a tensor from outside: its index in the session's list
};

// A cell with given operand kinds and classes: what may run in one batch.
struct Variant {
  int32_t id = 0;                    // dense, in the whole process
  bool lone = false;                 // never batched
  bool merge = false;                // equal calls are computed once; operands are numbers and values
  std::vector<Operand> operands;     // kind of every operand
  std::vector<int32_t> in_classes;   // value class of every operand, -1 for numbers
  std::vector<int32_t> out_classes;  // value class of every result

  // A recurrence one of whose operands, `slot`, goes into a product of its own: a call whose operand there does not
  // depend on the recurrence is recorded as two, `ahead` of that operand alone and `rest`, which takes the result of
  // `ahead` in its place. So the products run for all steps at once, before the first one.
  int32_t slot = -1;
  const Variant* ahead = nullptr;
  const Variant* rest = nullptr;
  uint64_t recurrence = 0;  // a bit, the same for all signatures of the cell and for their `rest`
  void* cell = nullptr;     // the Python cell, borrowed: there while the cell can be called
};

// The batches of a flush as arrays, for executors.
//
// A record says where one batch's operands and results stand, in this order: its length, its type (an index into
// `variants`), its rows m, how many rows batches of this type before it have, its operands, its results; then eight
// numbers an operand and two a result:
//   operand: kind, class, at, count, first, starts, makers, makers end
//     value, list: its table rows are rows[at : at + count], which are first, first + 1, ... unless first is -1
//     list:        the rows of call i are those from starts[starts + i] to starts[starts + i + 1], counted from `at`
//     number:      numbers[at : at + m]
//     tensor:      tensors[at : at + m]; stacked by class in the order of `tensors` they are rows first, first + 1, ...
//     makers[makers : makers end] are the batches of the session that the values come from
//   result:  class, first row in its table
struct Placement {
  std::vector<int64_t> records;
  std::vector<int64_t> offset;           // [batches + 1], where records begin
  std::vector<int32_t> type;             // [batches]
  std::vector<const Variant*> variants;  // by type
  std::vector<int64_t> total;            // by type: rows of all its batches
  std::vector<int64_t> largest;          // by type: rows of its largest batch
  std::vector<int32_t> rows;             // table rows of value and list operands
  std::vector<int64_t> numbers;          // integers
  std::vector<int32_t> tensors;          // indices of outside tensors
  std::vector<int64_t> starts;           // offsets of list operands
  std::vector<int32_t> makers;
  std::vector<int64_t> used;  // rows used of every class's table after this flush, by class
};

class Recorder {
 public:
  // Appends a call: operands as described at `Operand`, one after another. Returns the first result's value id; where
  // the call reads a pending result of a later phase nothing is appended, and the answer is -1 - that phase.
  int64_t append(const Variant& variant, const int64_t* operands, int64_t count);

  // Whether this call is to be recorded as the two parts of its variant.
  bool splits(const Variant& variant, const int64_t* operands) const {
    if (variant.ahead == nullptr || depths_.by_program()) {
      return false;
    }
    const bool made = variant.operands[variant.slot] == Operand::value;
    return !made || (recurrences_[producer_[operands[variant.slot]]] & variant.recurrence) == 0;
  }

  // Equal calls that may be merged are recorded once, where depth is by data; otherwise `place` merges them.
  void merge_early(bool early) {
    early_ = early;
  }

  // The calls since the last flush as a graph; types are dense, `type_variant` names them.
  Graph graph(std::vector<const Variant*>& type_variant) const;

  // Gives table rows to the results of the scheduled calls, in order, and lists every batch's operand rows. Ends the
  // flush: the calls count as executed.
  Placement place(const Schedule& schedule);

  int64_t nodes() const {
    return static_cast<int64_t>(variant_.size());
  }
  int64_t pending() const {
    return nodes() - flushed_;
  }
  int64_t flushed() const {
    return flushed_;
  }
  // Depths and phases of the pending calls, and of the next one.
  Depths& depths() {
    depths_.restart(flushed_);
    return depths_;
  }
  // The batch that made a value, counted over all flushes; the value must have been flushed.
  int32_t batch_of(int64_t value) const {
    return batch_of_[producer_[value]];
  }
  // Table row of a value, or -1 before its flush.
  int32_t row_of(int64_t value) const {
    return value < static_cast<int64_t>(row_.size()) ? row_[value] : -1;
  }

 private:
  std::vector<const Variant*> variant_;  // [nodes]
  std::vector<int64_t> operand_start_;   // [nodes], into operands_
  std::vector<int64_t> operands_;
  std::vector<int64_t> first_value_;   // [nodes], id of the first result
  std::vector<int32_t> producer_;      // [values], the node that makes it
  std::vector<int32_t> row_;           // [values flushed], row in its class's table
  std::vector<int64_t> used_;          // [classes], rows given out
  std::vector<int32_t> batch_of_;      // [nodes flushed], the batch that ran it
  std::vector<uint64_t> recurrences_;  // [nodes], bits of the recurrences that a call depends on or belongs to
  int32_t batches_ = 0;                // batches of all flushes
  int64_t flushed_ = 0;                // nodes that are executed
  Depths depths_;
  bool early_ = true;
  std::vector<int32_t> equals_;  // hash table of pending calls that may be merged; -1 is free
  int64_t distinct_ = 0;         // calls in it

  int32_t* equal(const Variant& variant, const int64_t* operands);
};

}  // namespace edgeops::batching
