// SPDX-License-Identifier: Apache-2.0
// Eviction on the CPU against the reference: observe, score, choose, compact, and all of them in one run.
#include "support/eviction_sample.hpp"
#include "support/expect_eviction.hpp"

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
using skim::compaction;
using skim::retention;
namespace anchor = skim::anchor;

void expect_policy(const policy_case& c) {
  using skim::caote;
  using skim::fast_caote;
  using skim::keydiff;
  const eviction_case& e = c.eviction;
  switch (c.policy) {
    case 0:
      return expect_eviction(skim::h2o{c.keep}, e);
    case 1:
      return expect_eviction(skim::tova{c.keep}, e);
    case 2:
      return expect_eviction(snapkv_of(c), e);
    case 3:
      return expect_eviction(keydiff<>{c.keep}, e);
    case 4:
      return expect_eviction(keydiff<anchor::mean>{c.keep}, e);
    case 5:
      return expect_eviction(keydiff<anchor::median>{c.keep}, e);
    case pairwise_policy:
      return expect_eviction(keydiff<anchor::pairwise>{c.keep}, e);
    case 7:
      return expect_eviction(caote{skim::h2o{c.keep}}, e);
    case 8:
      return expect_eviction(caote{keydiff<>{c.keep}}, e);
    case joint_policy:
      return expect_eviction(caote{skim::tova{c.keep}, true}, e);
    case 10:
      return expect_eviction(caote{snapkv_of(c)}, e);
    case 11:
      return expect_eviction(fast_caote{keydiff<>{c.keep}}, e);
    case 12:
      return expect_eviction(fast_caote{skim::tova{c.keep}}, e);
    default:
      return expect_eviction(skim::sink_window{{c.keep.count, 0, c.keep.sinks, 0}}, e);
  }
}

/// Values inside keys move once, in every way and layout; so do keys and values of two types.
TEST(EvictionStorage, MovesWhatIsStored) {
  const retention keep = retention::budget(48, 3, 9);
  for (const cache_form form : sampled_forms) {
    for (const compaction how : {compaction::refill, compaction::stable, compaction::pages}) {
      if (how == compaction::pages && (form.layout != skim::kv_layout::paged || form.page_size > 16)) continue;
      for (const skim::element type : cache_types) {
        for (const skim::element v_type : cache_types) {
          eviction_case c;
          c.call.kv_type = type;
          c.call.v_type = v_type;
          c.call.values_in_keys = type == v_type;
          c.call.layout = form.layout;
          c.call.page_size = form.page_size;
          c.call.Tq = 13;
          c.call.Tk = 70;
          c.call.Hk = 2;
          c.call.D = 24;
          c.call.Dv = type == v_type ? 17 : 30;
          c.call.positions = positions_kind::holes;
          fit_stored_types(c.call);
          c.how = how;
          c.share_heads = how == compaction::pages;
          SCOPED_TRACE(testing::Message() << c);
          expect_eviction(skim::fast_caote{skim::keydiff<>{keep}}, c);
          expect_eviction(skim::keydiff<>{keep}, c);
          if (HasFailure()) return;
        }
      }
    }
  }
}

constexpr int shards = 4;
class eviction : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, eviction, testing::Range(0, shards));

TEST_P(eviction, equals_the_reference_stage_by_stage) {
  const std::vector<policy_case> cases = eviction_sample();
  for (std::size_t i = static_cast<std::size_t>(GetParam()) * SKIM_TEST_STRIDE; i < cases.size();
       i += shards * SKIM_TEST_STRIDE) {
    SCOPED_TRACE(testing::Message() << cases[i]);
    expect_policy(cases[i]);
    if (HasFailure()) return;
  }
}

}  // namespace
