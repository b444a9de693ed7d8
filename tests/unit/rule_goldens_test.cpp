// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's own rule on layers of two real models: the reference and the kernel against every stage as an independent
/// implementation computed it (goldens/README.md), each given the stage before.

#include "support/rule_stages.hpp"

#include <skim/interop/safetensors.hpp>

#include <gtest/gtest.h>

namespace {

using namespace skim_test;

struct golden {
  std::string layer;
  std::int64_t n;
};

std::ostream& operator<<(std::ostream& to, const golden& g) {
  return to << g.layer << "_" << g.n;
}

class RuleGoldens : public testing::TestWithParam<golden> {
 protected:
  const skim::safetensors::file file_ =
      skim::safetensors::file::read(std::string(SKIM_GOLDENS) + "/" + GetParam().layer + ".safetensors");
  const skim::query_rule rule_ = skim::queries::needed(GetParam().n);

  const skim::safetensors::tensor& stored(const std::string& name) const {
    const skim::safetensors::tensor* const found = file_.find(name);
    EXPECT_NE(found, nullptr) << name;
    return *found;
  }
  std::string staged(const std::string& name) const { return name + "_" + std::to_string(GetParam().n); }

  std::vector<double> values(const std::string& name, std::int64_t head) const {
    const auto view = *stored(name).view<2>();
    std::vector<double> row;
    for (std::int64_t i = 0; i < view.extents[1]; ++i)
      row.push_back(skim::load_element(view.data, view.type, view.offset(head, i)));
    return row;
  }
  std::vector<std::int64_t> indices(const std::string& name, std::int64_t head) const {
    const skim::safetensors::tensor& tensor = stored(name);
    const std::int64_t n = tensor.shape[1];
    const std::int32_t* const first = static_cast<const std::int32_t*>(tensor.data) + head * n;
    return {first, first + n};
  }
  reference::vector_list queries(std::int64_t head) const {
    const auto view = *stored(staged("queries")).view<3>();
    reference::vector_list rows;
    for (std::int64_t i = 0; i < view.extents[1]; ++i) {
      rows.emplace_back();
      for (std::int64_t d = 0; d < view.extents[2]; ++d)
        rows.back().push_back(skim::load_element(view.data, view.type, view.offset(head, i, d)));
    }
    return rows;
  }

  skim::attention_args args() const {
    skim::attention_args args;
    args.q = *stored("q").view<3>();
    const auto k = *stored("k").view<3>();
    args.kv = skim::contiguous_kv(k, k, k.extents[0]);
    args.kv.values_in_keys = true;
    args.scale = std::stof(*file_.metadata("scale"));
    args.out = skim::tensor_view<void, 3>(out_.get(), {args.q.extents[0], args.q.extents[1], args.q.extents[2]},
                                          skim::element::f32);
    return args;
  }
  std::unique_ptr<float[]> out_{new float[static_cast<std::size_t>(1) << 20]};

  /// Golden numbers are stored as f32.
  static double stored_error(double value) { return std::fabs(value) * 0x1p-23 + 1e-12; }
};

TEST_P(RuleGoldens, StagesOfTheReference) {
  const skim::attention_args call = args();
  const skim::attention_sequence block = skim::sequence_at(call, 0);
  for (std::int64_t head = 0; head < call.kv.heads; ++head) {
    SCOPED_TRACE(testing::Message() << "head " << head);
    const auto slot_ids = reference::candidates_in_order(call, block, head);
    const auto rows = reference::own_rows(call, block, head);
    const auto need = values(staged("need"), head);
    const auto own = reference::needs_of_rows(rule_, call, block, head, slot_ids);
    for (std::size_t r = 0; r < need.size(); ++r) ASSERT_NEAR(own[r], need[r], 1e-6) << "row " << r;
    const auto features = reference::features_of_rows(rows, block.Tq);
    const auto picked = indices(staged("picked"), head);
    EXPECT_EQ(reference::pick_rows(own, features, rule_.n), picked);
    const auto averaged = reference::average_members(rows, own, picked, reference::nearest_picked(features, picked));
    const auto golden_queries = queries(head);
    for (std::size_t i = 0; i < averaged.size(); ++i) {
      for (std::size_t d = 0; d < averaged[i].size(); ++d)
        ASSERT_NEAR(averaged[i][d], golden_queries[i][d], 1e-5) << i << ", " << d;
    }
    const auto rounded = reference::rounded_for(skim::element::bf16, golden_queries);
    const auto moments = reference::moments_of_queries(block, head, rounded, slot_ids);
    const auto mean = values(staged("mean"), head), deviation = values(staged("deviation"), head);
    for (std::size_t i = 0; i < moments.size(); ++i) {
      ASSERT_NEAR(moments[i].mean, mean[i], stored_error(mean[i]) + 1e-6) << i;
      ASSERT_NEAR(moments[i].deviation, deviation[i], stored_error(deviation[i])) << i;
    }
    const skim::quoka policy{rule_};
    const auto scores = reference::final_scores(policy, reference::raw_scores(policy, block, head, rounded, slot_ids));
    const auto golden_scores = values(staged("score"), head);
    for (std::size_t i = 0; i < scores.size(); ++i)
      ASSERT_NEAR(scores[i], golden_scores[i], stored_error(golden_scores[i]) + 1e-6) << i;
    for (const std::int64_t budget : {256, 512}) {
      EXPECT_EQ(reference::top_k(skim::retention::budget(budget, 4, 128), block, head, slot_ids, golden_scores),
                indices("list_" + std::to_string(budget) + staged(""), head));
    }
  }
}

TEST_P(RuleGoldens, StagesOfTheKernel) {
  const skim::attention_args call = args();
  const skim::attention_sequence block = skim::sequence_at(call, 0);
  std::size_t different = 0, all = 0;
  const skim::cpu::attention op{skim::quoka{rule_, skim::retention::preset(512).for_every(128)}};
  skim_test::aligned_memory workspace(op.workspace_bytes(call, 1));
  std::vector<std::int32_t> found(static_cast<std::size_t>(call.kv.heads * op.list_capacity(call))),
      counts(static_cast<std::size_t>(call.kv.heads));
  skim::index_lists lists;
  lists.indices = found.data();
  lists.counts = counts.data();
  lists.rows = call.kv.heads;
  lists.capacity = op.list_capacity(call);
  lists.block_rows = op.block_rows();
  const skim::report report = op.select(call, lists, {}, workspace.get(), skim::serial_executor{});
  char text[200];
  ASSERT_TRUE(report.ok()) << describe(report, text, sizeof text);
  for (std::int64_t head = 0; head < call.kv.heads; ++head) {
    SCOPED_TRACE(testing::Message() << "head " << head);
    const own_stages stages(rule_, call, block, head);
    const own_rule_check check{rule_, call, block, head};
    check.expect_stages(stages, reference::candidates_in_order(call, block, head));
    if (HasFatalFailure()) return;
    const auto wanted = indices(staged("list_512"), head);
    const std::set<std::int64_t> listed(lists.row(head), lists.row(head) + counts[static_cast<std::size_t>(head)]);
    EXPECT_EQ(listed.size(), wanted.size());
    for (const std::int64_t slot : wanted) different += listed.count(slot) == 0;
    all += wanted.size();
  }
  RecordProperty("different", static_cast<int>(different));
  EXPECT_LE(static_cast<double>(different), 0.003 * static_cast<double>(all));
  std::printf("%zu of %zu keys differ\n", different, all);
}

INSTANTIATE_TEST_SUITE_P(Layers, RuleGoldens,
                         testing::Values(golden{"smollm2_layer2_2048", 64}, golden{"smollm2_layer2_2048", 32},
                                         golden{"smollm2_layer14_2048", 64}, golden{"smollm2_layer14_2048", 32},
                                         golden{"smollm2_layer27_4096", 64}, golden{"smollm2_layer27_4096", 32},
                                         golden{"gemma3_layer5_2048", 64}, golden{"gemma3_layer5_2048", 32},
                                         golden{"gemma3_layer17_2048", 64}, golden{"gemma3_layer17_2048", 32}),
                         testing::PrintToStringParamName());

}  // namespace
