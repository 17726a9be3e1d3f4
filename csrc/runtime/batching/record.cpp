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

}  // namespace

int64_t Recorder::append(const Variant& variant, const int64_t* operands, int64_t count) {
  Depths& depths = this->depths();
  Depths::Reads reads;
  each_operand(variant, operands, [&](Operand kind, const int64_t* values, int64_t n) {
    if (kind != Operand::value && kind != Operand::list) {
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      const int32_t arg = producer_[values[i]];
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
  variant_.push_back(&variant);
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

Placement Recorder::place(const Schedule& schedule) {
  Placement p;
  row_.resize(producer_.size(), -1);
  batch_of_.resize(variant_.size(), -1);
  std::vector<int32_t> seen(batches_ + schedule.start.size(), -1);  // by batch: the operand that has listed it
  int32_t operand_index = 0;
  const auto batches = static_cast<int64_t>(schedule.start.size()) - 1;
  p.batches.reserve(batches);
  for (int64_t b = 0; b < batches; ++b) {
    const int32_t* members = &schedule.order[schedule.start[b]];
    const int64_t count = schedule.start[b + 1] - schedule.start[b];
    const Variant& variant = *variant_[flushed_ + members[0]];
    const size_t slots = variant.operands.size();
    PlacedBatch batch{&variant, count, {}, {}, {}, {}, {}, std::vector<std::vector<int32_t>>(slots)};
    // a call's operands are walked slot by slot; `at` remembers how far each call is
    std::vector<const int64_t*> at(count);
    for (int64_t i = 0; i < count; ++i) {
      at[i] = operands_.data() + operand_start_[flushed_ + members[i]];
    }
    for (size_t slot = 0; slot < slots; ++slot) {
      const Operand kind = variant.operands[slot];
      ++operand_index;
      const auto starts_at = static_cast<int64_t>(p.starts.size());
      batch.starts_at.push_back(kind == Operand::list ? starts_at : -1);
      if (kind == Operand::number) {
        batch.operand_at.push_back(static_cast<int64_t>(p.numbers.size()));
        for (auto& operand : at) {
          p.numbers.push_back(*operand++);
        }
        batch.operand_count.push_back(count);
        batch.first_row.push_back(-1);
      } else if (kind == Operand::tensor) {
        batch.operand_at.push_back(static_cast<int64_t>(p.tensors.size()));
        for (auto& operand : at) {
          p.tensors.push_back(static_cast<int32_t>(*operand++));
        }
        batch.operand_count.push_back(count);
        batch.first_row.push_back(-1);
      } else {
        const auto begin = static_cast<int64_t>(p.rows.size());
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
              batch.makers[slot].push_back(maker);
            }
          }
          if (kind == Operand::list) {
            p.starts.push_back(static_cast<int64_t>(p.rows.size()) - begin);
          }
        }
        const auto total = static_cast<int64_t>(p.rows.size()) - begin;
        batch.operand_at.push_back(begin);
        batch.operand_count.push_back(total);
        int64_t first = total > 0 ? p.rows[begin] : 0;
        for (int64_t i = 1; i < total; ++i) {
          if (p.rows[begin + i] != first + i) {
            first = -1;
            break;
          }
        }
        batch.first_row.push_back(first);
      }
    }
    for (size_t o = 0; o < variant.out_classes.size(); ++o) {
      const int32_t c = variant.out_classes[o];
      if (c >= static_cast<int32_t>(used_.size())) {
        used_.resize(c + 1, 0);
      }
      batch.out_row.push_back(used_[c]);
      for (int64_t i = 0; i < count; ++i) {
        row_[first_value_[flushed_ + members[i]] + static_cast<int64_t>(o)] = static_cast<int32_t>(used_[c] + i);
      }
      used_[c] += count;
    }
    for (int64_t i = 0; i < count; ++i) {
      batch_of_[flushed_ + members[i]] = batches_;
    }
    ++batches_;
    p.batches.push_back(std::move(batch));
  }
  p.used = used_;
  flushed_ = nodes();
  return p;
}

}  // namespace edgeops::batching
