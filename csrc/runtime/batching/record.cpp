// SPDX-License-Identifier: Apache-2.0
#include "record.h"

#include <algorithm>

namespace edgeops::batching {

namespace {

// Calls `on(kind, first, count)` for every operand of a call.
template <class On>
void each_operand(const Variant& variant, const int64_t* operands, On on) {
  for (const Operand kind : variant.operands) {
    const int64_t count = kind == Operand::list ? *operands++ : 1;
    on(kind, operands, count);
    operands += count;
  }
}

uint64_t hash_of(uint64_t seed, const int64_t* numbers, int64_t count) {
  uint64_t hash = seed;
  for (int64_t k = 0; k < count; ++k) {
    hash = (hash ^ static_cast<uint64_t>(numbers[k])) * 0x9E3779B97F4A7C15ULL;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

// Where the hash table has an equal call, or has room for it.
int32_t* Recorder::equal(const Variant& variant, const int64_t* operands) {
  const auto width = static_cast<int64_t>(variant.operands.size());
  const auto hashed = [](const Variant& v, const int64_t* numbers) {
    return hash_of(static_cast<uint64_t>(v.id) + 1, numbers, static_cast<int64_t>(v.operands.size()));
  };
  if (2 * distinct_ >= static_cast<int64_t>(equals_.size())) {
    std::vector<int32_t> larger(std::max<size_t>(256, 2 * equals_.size()), -1);
    for (const int32_t node : equals_) {
      if (node >= 0) {
        size_t at = hashed(*variant_[node], &operands_[operand_start_[node]]);
        while (larger[at & (larger.size() - 1)] >= 0) {
          ++at;
        }
        larger[at & (larger.size() - 1)] = node;
      }
    }
    equals_ = std::move(larger);
  }
  for (size_t at = hashed(variant, operands);; ++at) {
    int32_t& node = equals_[at & (equals_.size() - 1)];
    if (node < 0) {
      return &node;
    }
    const int64_t* known = &operands_[operand_start_[node]];
    bool same = variant_[node] == &variant;
    for (int64_t k = 0; same && k < width; ++k) {  // one or two numbers: less than a call would cost
      same = operands[k] == known[k];
    }
    if (same) {
      return &node;
    }
  }
}

int64_t Recorder::append(const Variant& variant, const int64_t* operands, int64_t count) {
  Depths& depths = this->depths();
  int32_t* same = nullptr;
  if (variant.merge && early_ && !depths.by_program()) {
    same = equal(variant, operands);
    if (*same >= 0 && depths.phase_of(*same) <= depths.phase()) {
      return first_value_[*same];
    }
  }
  Depths::Reads reads;
  uint64_t recurrences = variant.recurrence;
  each_operand(variant, operands, [&](Operand kind, const int64_t* values, int64_t n) {
    if (kind != Operand::value && kind != Operand::list) {
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      const int32_t arg = producer_[values[i]];
      recurrences |= recurrences_[arg];
      if (arg >= flushed_) {
        depths.read(arg, &reads);
      }
    }
  });
  if (reads.last_phase > depths.phase()) {
    return -1 - reads.last_phase;
  }
  depths.add(variant.id, reads);
  const auto node = static_cast<int32_t>(variant_.size());
  const auto value = static_cast<int64_t>(producer_.size());
  if (same != nullptr) {
    distinct_ += *same < 0;
    *same = node;
  }
  variant_.push_back(&variant);
  recurrences_.push_back(recurrences);
  operand_start_.push_back(static_cast<int64_t>(operands_.size()));
  operands_.insert(operands_.end(), operands, operands + count);
  first_value_.push_back(value);
  producer_.insert(producer_.end(), variant.out_classes.size(), node);
  return value;
}

Graph Recorder::graph(std::vector<const Variant*>& type_variant) const {
  Graph g;
  const int64_t count = pending();
  std::vector<int32_t> type_of;
  g.type.reserve(count);
  g.arg_start.reserve(count + 1);
  g.args.reserve(2 * count);
  g.arg_start.push_back(0);
  for (int64_t node = flushed_; node < nodes(); ++node) {
    const Variant& variant = *variant_[node];
    if (variant.id >= static_cast<int32_t>(type_of.size())) {
      type_of.resize(variant.id + 1, -1);
    }
    int32_t& type = type_of[variant.id];
    if (type < 0) {
      type = static_cast<int32_t>(type_variant.size());
      type_variant.push_back(&variant);
      g.lone.push_back(variant.lone);
    }
    g.type.push_back(type);
    const auto begin = g.args.size();
    each_operand(variant, &operands_[operand_start_[node]], [&](Operand kind, const int64_t* values, int64_t n) {
      if (kind != Operand::value && kind != Operand::list) {
        return;
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t arg = producer_[values[i]] - flushed_;
        // several results of one call are one edge; a short look back finds nearly all of them
        const auto from = g.args.end() - std::min<int64_t>(8, static_cast<int64_t>(g.args.size() - begin));
        if (arg >= 0 && std::find(from, g.args.end(), static_cast<int32_t>(arg)) == g.args.end()) {
          g.args.push_back(static_cast<int32_t>(arg));
        }
      }
    });
    g.arg_start.push_back(static_cast<int64_t>(g.args.size()));
  }
  g.types = static_cast<int32_t>(type_variant.size());
  depths_.put(flushed_, &g);
  return g;
}

namespace {

// Which calls of a batch have the operands of an earlier one, `keys` in rows of `width`: `same[i]` is the place of the
// first such call among the kept ones, in order. Returns how many are kept.
class Equals {
 public:
  int64_t find(const std::vector<int64_t>& keys, int64_t width, int64_t calls, std::vector<int32_t>& same) {
    size_t size = 16;
    while (size < 2 * static_cast<size_t>(calls)) {
      size *= 2;
    }
    slots_.assign(size, -1);
    first_.clear();
    same.resize(calls);
    for (int64_t i = 0; i < calls; ++i) {
      const int64_t* key = keys.data() + i * width;
      size_t at = hash_of(0, key, width) & (size - 1);
      while (slots_[at] >= 0 && !std::equal(key, key + width, keys.data() + first_[slots_[at]] * width)) {
        at = (at + 1) & (size - 1);
      }
      if (slots_[at] < 0) {
        slots_[at] = static_cast<int32_t>(first_.size());
        first_.push_back(static_cast<int32_t>(i));
      }
      same[i] = slots_[at];
    }
    return static_cast<int64_t>(first_.size());
  }

  // The call that is kept as number `kept`.
  int32_t first(int64_t kept) const {
    return first_[kept];
  }

 private:
  std::vector<int32_t> slots_, first_;
};

}  // namespace

Placement Recorder::place(const Schedule& schedule) {
  Placement p;
  row_.resize(producer_.size(), -1);
  batch_of_.resize(variant_.size(), -1);
  std::vector<int32_t> seen(batches_ + schedule.start.size(), -1);  // by batch: the operand that has listed it
  std::vector<int32_t> type_of, same;                               // by variant id; by call of a batch
  std::vector<int64_t> outside, keys;                               // by class: tensors from outside so far; of merging
  std::vector<const int64_t*> at;  // by call: its next operand; operands are walked slot by slot
  Equals equals;
  int32_t operand_index = 0;
  const auto batches = static_cast<int64_t>(schedule.start.size()) - 1;
  p.offset.reserve(batches + 1);
  for (int64_t b = 0; b < batches; ++b) {
    const int32_t* members = &schedule.order[schedule.start[b]];
    const int64_t calls = schedule.start[b + 1] - schedule.start[b];
    const Variant& variant = *variant_[flushed_ + members[0]];
    if (variant.id >= static_cast<int32_t>(type_of.size())) {
      type_of.resize(variant.id + 1, -1);
    }
    int32_t& type = type_of[variant.id];
    if (type < 0) {
      type = static_cast<int32_t>(p.variants.size());
      p.variants.push_back(&variant);
      p.total.push_back(0);
      p.largest.push_back(0);
    }
    at.resize(calls);
    for (int64_t i = 0; i < calls; ++i) {
      at[i] = operands_.data() + operand_start_[flushed_ + members[i]];
    }
    int64_t count = calls;
    if (variant.merge) {
      const size_t width = variant.operands.size();
      keys.clear();
      for (const int64_t* operands : at) {
        for (size_t slot = 0; slot < width; ++slot) {
          keys.push_back(variant.operands[slot] == Operand::value ? row_[operands[slot]] : operands[slot]);
        }
      }
      count = equals.find(keys, static_cast<int64_t>(width), calls, same);
      for (int64_t i = 0; i < count; ++i) {  // kept calls move forward, never over one still needed
        at[i] = at[equals.first(i)];
      }
      at.resize(count);
    }
    p.offset.push_back(static_cast<int64_t>(p.records.size()));
    p.type.push_back(type);
    const size_t slots = variant.operands.size(), outs = variant.out_classes.size();
    const auto length = static_cast<int64_t>(6 + 8 * slots + 2 * outs);
    p.records.insert(
        p.records.end(), {length, type, count, p.total[type], static_cast<int64_t>(slots), static_cast<int64_t>(outs)});
    p.total[type] += count;
    p.largest[type] = std::max(p.largest[type], count);
    for (size_t slot = 0; slot < slots; ++slot) {
      const Operand kind = variant.operands[slot];
      const int32_t of_class = variant.in_classes[slot];
      ++operand_index;
      int64_t begin = 0, total = count, first = -1;
      const auto starts = static_cast<int64_t>(p.starts.size()), makers = static_cast<int64_t>(p.makers.size());
      if (kind == Operand::number) {
        begin = static_cast<int64_t>(p.numbers.size());
        for (auto& operand : at) {
          p.numbers.push_back(*operand++);
        }
      } else if (kind == Operand::tensor) {
        begin = static_cast<int64_t>(p.tensors.size());
        for (auto& operand : at) {
          p.tensors.push_back(static_cast<int32_t>(*operand++));
        }
        if (of_class >= static_cast<int32_t>(outside.size())) {
          outside.resize(of_class + 1, 0);
        }
        first = outside[of_class];
        outside[of_class] += count;
      } else {
        begin = static_cast<int64_t>(p.rows.size());
        if (kind == Operand::list) {
          p.starts.push_back(0);
        }
        for (auto& operand : at) {
          const int64_t n = kind == Operand::list ? *operand++ : 1;
          for (int64_t i = 0; i < n; ++i) {
            const int64_t value = *operand++;
            p.rows.push_back(row_[value]);
            const int32_t maker = batch_of(value);
            if (seen[maker] != operand_index) {
              seen[maker] = operand_index;
              p.makers.push_back(maker);
            }
          }
          if (kind == Operand::list) {
            p.starts.push_back(static_cast<int64_t>(p.rows.size()) - begin);
          }
        }
        total = static_cast<int64_t>(p.rows.size()) - begin;
        first = total > 0 ? p.rows[begin] : 0;
        for (int64_t i = 1; i < total; ++i) {
          if (p.rows[begin + i] != first + i) {
            first = -1;
            break;
          }
        }
      }
      p.records.insert(
          p.records.end(), {static_cast<int64_t>(kind), of_class, begin, total, first, starts, makers,
                            static_cast<int64_t>(p.makers.size())});
    }
    for (size_t o = 0; o < outs; ++o) {
      const int32_t c = variant.out_classes[o];
      if (c >= static_cast<int32_t>(used_.size())) {
        used_.resize(c + 1, 0);
      }
      p.records.insert(p.records.end(), {c, used_[c]});
      for (int64_t i = 0; i < calls; ++i) {
        const int64_t row = used_[c] + (variant.merge ? same[i] : i);
        row_[first_value_[flushed_ + members[i]] + static_cast<int64_t>(o)] = static_cast<int32_t>(row);
      }
      used_[c] += count;
    }
    for (int64_t i = 0; i < calls; ++i) {
      batch_of_[flushed_ + members[i]] = batches_;
    }
    ++batches_;
  }
  p.offset.push_back(static_cast<int64_t>(p.records.size()));
  p.used = used_;
  flushed_ = nodes();
  if (distinct_ > 0) {
    equals_.clear();
    distinct_ = 0;
  }
  return p;
}

}  // namespace edgeops::batching
