// SPDX-License-Identifier: Apache-2.0
/// \file A small cache to evict from, by any policy.
#pragma once

#include "eviction_case.hpp"
#include "own_evictor.hpp"

namespace skim_test {

inline eviction_case small_case() {
  eviction_case c;
  c.call.Tq = 12;
  c.call.Tk = 90;
  c.call.G = 2;
  c.call.Hk = 2;
  c.call.D = c.call.Dv = 24;
  c.call.positions = positions_kind::shuffled;
  return c;
}

/// Observes, scores, and returns the scores of one head.
template <class Policy>
std::vector<double> scores_of(const Policy& policy, const skim::eviction_args& args, std::int64_t head) {
  eviction_run<Policy> run(policy, args);
  run.observe();
  return run.scores_of(head);
}

/// The lists of a whole run.
template <class Policy>
std::vector<std::vector<std::int64_t>> lists_of(const Policy& policy, const skim::eviction_args& args) {
  eviction_run<Policy> run(policy, args);
  lists_memory kept(skim::list_rows(args), run.op.list_capacity(args));
  EXPECT_TRUE(run.run(kept).ok());
  EXPECT_TRUE(kept.guards_intact());
  std::vector<std::vector<std::int64_t>> lists;
  for (std::int64_t r = 0; r < skim::list_rows(args); ++r) lists.push_back(kept.row(r));
  return lists;
}

/// The chunk is the whole cache, so that KeyDiff's sums hold every key.
inline eviction_case whole_case(std::int64_t n) {
  eviction_case c = small_case();
  c.call.Tq = n;
  c.call.Tk = 0;
  return c;
}

/// `count` positions from `first` on.
inline std::vector<std::int64_t> run_of_positions(std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

/// Calls `body(policy)` with every kind of policy.
template <class Body>
void for_every_policy(const skim::retention& keep, const Body& body) {
  body(skim::h2o{keep});
  body(skim::tova{keep});
  body(skim::snapkv{keep, std::min<std::int64_t>(4, keep.count - keep.sinks), 3});
  body(skim::keydiff<>{keep});
  body(skim::keydiff<skim::anchor::mean>{keep});
  body(skim::keydiff<skim::anchor::median>{keep});
  body(skim::keydiff<skim::anchor::pairwise>{keep});
  body(skim::caote{skim::h2o{keep}});
  body(skim::caote{skim::keydiff<>{keep}});
  body(skim::caote{skim::tova{keep}, true});
  body(skim::fast_caote{skim::keydiff<>{keep}});
  body(skim::random_tokens{keep, 3});
  body(skim::sink_window{{keep.count, 0, keep.sinks, 0}});
  body(hashed_tokens<false>{keep});
}

}  // namespace skim_test
