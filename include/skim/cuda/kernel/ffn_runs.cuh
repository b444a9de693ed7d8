// SPDX-License-Identifier: Apache-2.0
/// \file The blocks of an FFN's call in runs that kernels take as parameters: so many at a time as fit.
#pragma once

#include <skim/cuda/kernel/ffn_call.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

/// What becomes of a block.
struct block_plan {
  bool listed = false;  ///< it has a list; else it computes all neurons
  int neurons = 0;      ///< that its list is to have
  bool compensated = false;
};

/// Collects runs and numbers their tiles.
class run_collector {
 public:
  bool empty() const { return runs_.count == 0; }
  bool full() const { return runs_.count == ffn_runs::most; }
  const ffn_runs& runs() const { return runs_; }

  void begin(std::int64_t first_row) {
    runs_ = {};
    runs_.first_row = static_cast<int>(first_row);
  }
  /// Behind what is there.
  void add(ffn_run run) {
    if (runs_.lists == 0) runs_.first_list = run.first_list;
    run.first_row = runs_.rows;
    run.first_tile = runs_.tiles;
    run.tiles_of_block = static_cast<int>(pieces(run.block_rows, ffn_tile::rows));
    runs_.tiles += tiles_of(run);
    runs_.rows += run.rows;
    runs_.lists += run.lists;
    runs_.run[runs_.count++] = run;
  }
  /// Puts one more block into the last run. False where it does not go with it.
  bool extend(std::int64_t rows, const block_plan& plan, int list) {
    if (empty()) return false;
    ffn_run run = runs_.run[runs_.count - 1];
    const bool listed = run.lists > 0;
    if (listed != plan.listed) return false;
    if (listed &&
        (run.neurons != plan.neurons || run.compensated != plan.compensated || run.rows != run.lists * run.block_rows ||
         rows > run.block_rows || list != run.first_list + run.lists)) {
      return false;
    }
    take_back();
    run.rows += static_cast<int>(rows);
    if (listed) ++run.lists;
    if (!listed) run.block_rows = static_cast<int>(greater(run.rows, 1));
    add(run);
    return true;
  }

 private:
  static int tiles_of(const ffn_run& run) {
    return run.rows / run.block_rows * run.tiles_of_block +
           static_cast<int>(pieces(run.rows % run.block_rows, ffn_tile::rows));
  }
  void take_back() {
    const ffn_run& run = runs_.run[--runs_.count];
    runs_.tiles -= tiles_of(run);
    runs_.rows -= run.rows;
    runs_.lists -= run.lists;
  }

  ffn_runs runs_;
};

/// Calls `body(runs)` for the blocks of the call, in order; `plan_of(block)` says what becomes of each. Lists are numbered as
/// the call's blocks are, or from 0 on in each of `runs`.
template <class PlanOf, class Body>
void for_each_runs(const ffn_args& args, bool by_block, const PlanOf& plan_of, const Body& body) {
  run_collector collected;
  std::int64_t row = 0;
  collected.begin(0);
  const auto pass = [&] {
    if (!collected.empty()) body(collected.runs());
    collected.begin(row);
  };
  for_each_block(args, [&](const ffn_args& block, std::int64_t index) {
    const block_plan plan = plan_of(block);
    if (plan.listed && collected.runs().lists == ffn_runs::most_lists) pass();
    const std::int64_t rows = block.x.extents[0];
    int list = by_block ? static_cast<int>(index) : collected.runs().lists;
    if (!collected.extend(rows, plan, list)) {
      if (collected.full()) {
        pass();
        if (!by_block) list = 0;
      }
      ffn_run run;
      run.rows = static_cast<int>(rows);
      run.block_rows = static_cast<int>(greater(rows, 1));
      run.first_list = list;
      run.lists = plan.listed ? 1 : 0;
      run.neurons = plan.neurons;
      run.compensated = plan.compensated;
      collected.add(run);
    }
    row += rows;
  });
  pass();
}

/// Calls `body(part)` for parts of `runs` of at most `most` rows.
template <class Body>
void for_parts(const ffn_runs& runs, std::int64_t most, const Body& body) {
  if (runs.rows <= most) return runs.rows > 0 ? body(runs) : void();
  run_collector part;
  std::int64_t first_row = runs.first_row;
  part.begin(first_row);
  const auto pass = [&] {
    if (part.empty()) return;
    body(part.runs());
    part.begin(first_row);
  };
  for (int i = 0; i < runs.count; ++i) {
    const ffn_run& run = runs.run[i];
    for (std::int64_t row = 0, taken = 0; row < run.rows; row += taken) {
      const std::int64_t room = most - part.runs().rows, block = row / run.block_rows;
      const std::int64_t left = smaller((block + 1) * run.block_rows, run.rows) - row;  // of the block
      ffn_run own = run;
      if (left > room && left <= most) {
        pass();
        taken = 0;
        continue;
      }
      const bool whole = row % run.block_rows == 0 && run.block_rows <= room;
      taken = whole ? smaller(room / run.block_rows * run.block_rows, run.rows - row) : smaller(left, room);
      own.rows = static_cast<int>(taken);
      own.block_rows = whole ? run.block_rows : own.rows;
      own.first_list = run.first_list + static_cast<int>(block);
      own.lists = run.lists == 0 ? 0 : static_cast<int>(pieces(taken, own.block_rows));
      part.add(own);
      first_row += taken;
      if (part.full() || part.runs().rows == most) pass();
    }
  }
  pass();
}

}}}}  // namespace skim::v0_2::cuda::detail
