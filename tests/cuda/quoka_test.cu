// SPDX-License-Identifier: Apache-2.0
// QUOKA on a GPU, each stage against the reference's answer to what the stage before left, and against the golden lists of
// two real models' layers.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>
#include <skim/interop/safetensors.hpp>

#include "bf16_case.hpp"
#include "captured_call.hpp"
#include "on_device.hpp"
#include "support/attention_sample.hpp"
#include "support/quoka_stages.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

namespace {

using namespace skim_test;
using skim::retention;
namespace queries = skim::queries;

/// What lies on the GPU, in memory of the host.
template <class T>
std::vector<T> read(const T* from, std::int64_t count) {
  std::vector<T> to(static_cast<std::size_t>(count));
  EXPECT_EQ(cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDefault), cudaSuccess);
  return to;
}

/// What a selection left in its workspace for one list.
struct gpu_stages : own_stages {
  reference::vector_list scoring;  // as they score
  std::vector<float> scores;       // by slot

  /// `exact`: features, where the GPU makes none.
  gpu_stages(const skim::cuda::detail::quoka_call& call, std::int64_t list, std::int64_t R, std::int64_t first,
             std::int64_t past, const reference::vector_list& exact) {
    const std::int64_t D = call.kv.k.dim, kept = std::min<std::int64_t>(call.n, R);
    const auto rows_of = [&](const auto* of) { return read(of + list * call.rows, R); };
    if (call.needed && R > call.n) {
      const auto stored = read(call.features + list * call.rows * D, call.rows * D);
      const auto owners = rows_of(call.nearest);
      features = exact;
      for (std::int64_t r = 0; r < R; ++r) {
        const float need = rows_of(call.needs)[static_cast<std::size_t>(r)];
        needs.push_back(need < 0 ? 0 : static_cast<double>(need));
        nearest.push_back(owners[static_cast<std::size_t>(r)]);
        if (!exact.empty()) continue;
        features.emplace_back();
        for (std::int64_t d = 0; d < D; ++d) {
          features.back().push_back(need < 0
                                        ? std::numeric_limits<double>::quiet_NaN()
                                        : static_cast<double>(stored[static_cast<std::size_t>(d * call.rows + r)]));
        }
      }
      for (const int row : read(call.picked + list * call.n, call.n)) {
        if (row >= 0) picked.push_back(row);
      }
    }
    for (std::int64_t i = 0; i < kept; ++i) {
      const auto row = read(call.queries + (list * call.n + i) * skim::cuda::detail::padded(D), D);
      queries.emplace_back(row.begin(), row.end());
      if (!std::isnan(row[0])) scoring.emplace_back(row.begin(), row.end());
    }
    if (!call.means) queries = scoring;
    if (!chosen_by_clusters(call)) {
      scores = read(call.scores + list * call.score_stride, past);
      return;
    }
    // There scores are smoothed where they are read: the same sums in the same order.
    const auto raw = read(call.raw + list * call.score_stride, past);
    scores.resize(raw.size());
    for (std::int64_t slot = first; slot < past; ++slot) {
      float sum = 0, count = 0;
      for (std::int64_t at = std::max(slot - call.smooth / 2, first); at <= std::min(slot + call.smooth / 2, past - 1);
           ++at) {
        const float score = raw[static_cast<std::size_t>(at)];
        sum += std::isfinite(score) ? score : 0;
        count += std::isfinite(score) ? 1.0f : 0.0f;
      }
      const bool exists = std::isfinite(raw[static_cast<std::size_t>(slot)]);
      scores[static_cast<std::size_t>(slot)] = exists ? sum / count : std::numeric_limits<float>::quiet_NaN();
    }
  }

  static bool chosen_by_clusters(const skim::cuda::detail::quoka_call& call) {
    return skim::cuda::detail::has_hopper_code() &&
           skim::cuda::detail::cluster_choosing::blocks(call.score_stride, false) > 0;
  }
};

int by_tensor_cores = 0;  // lists whose queries they picked

/// The paper's queries: which tokens each head chose, and the means of those.
void expect_means(const stage_check& check, const skim::cuda::detail::quoka_call& call, std::int64_t list,
                  const reference::vector_list& queries) {
  const std::int64_t G = check.G(), Tq = check.block.Tq, n = static_cast<std::int64_t>(queries.size());
  std::vector<std::vector<std::int64_t>> tokens;
  if (check.by_query_head()) {
    for (std::int64_t g = 0; g < G; ++g) {
      const auto picked = read(call.picked + (list * G + g) * call.n, n);
      tokens.emplace_back(picked.begin(), picked.end());
      expect_choice(check.policy.queries, {reference::queries_of(check.args, check.block, check.head * G + g), 0},
                    check.block.Tk(), tokens.back());
      if (testing::Test::HasFatalFailure()) return;
    }
  } else {
    tokens.emplace_back(static_cast<std::size_t>(n));
    std::iota(tokens.back().begin(), tokens.back().end(), Tq - n);
  }
  const bool bf16 = call.query_type == skim::element::bf16, f16 = call.query_type == skim::element::f16;
  check.expect_qbar(queries, tokens, bf16 ? 0x1p-8 : f16 ? 0x1p-11 : 0, f16 ? 0x1p-25 : 0);
}

/// Selects on the GPU and checks every stage of every block and head of a call of one sequence.
void expect_selection_on_gpu(const skim::quoka& policy, const skim::attention_args& args) {
  const skim::cuda::attention<skim::quoka> op{policy};
  ASSERT_TRUE(op.check(args).ok());
  guarded_device_memory workspace(op.workspace_bytes(args));
  selected_lists found(skim::list_rows(args, op.block_rows()), op.list_capacity(args), op.block_rows());
  const skim::cuda::launch_report report = op.select(args, found.lists, workspace.get(), nullptr);
  ASSERT_TRUE(report.ok()) << cudaGetErrorString(report.error);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(workspace.guards_intact() && found.outside_intact());
  ASSERT_TRUE(check_indices(args, &found.lists).ok());

  const skim::attention_sequence sequence = skim::sequence_at(args, 0);
  skim::detail::arena arena(workspace.get().data);
  const skim::cuda::detail::quoka_call call = skim::cuda::detail::lay_out_quoka(policy, args, sequence, 0, arena);
  const std::int64_t heads = sequence.kv.heads;
  for (std::int64_t b = 0; b < call.blocks; ++b) {
    const skim::attention_sequence block = skim::block_of(sequence, b, policy.keep.every);
    for (std::int64_t head = 0; head < heads; ++head) {
      SCOPED_TRACE(testing::Message() << "block " << b << ", head " << head);
      const std::int64_t list = b * heads + head, past = block.past(head), R = block.Tq * skim::group_size(args);
      const auto listed = found.row(list);
      const auto candidates = reference::candidates_in_order(args, block, head);
      if (reference::lists_all(policy.keep, block, skim::cuda::detail::measured_crossing)) {
        EXPECT_EQ(listed, reference::all_past(block, head));
        continue;
      }
      if (block.Tq == 0 || static_cast<std::int64_t>(candidates.size()) <= policy.keep.keys(past)) {
        EXPECT_EQ(listed, candidates);
        continue;
      }
      own_rule_check check{policy.queries, args, block, head};
      reference::vector_list features;
      if (skim::cuda::detail::picks_by_tensor_cores(call, sequence.kv, [](auto, auto) {})) {
        features = reference::features_of_rows(reference::own_rows(args, block, head), block.Tq);
        check.common = check.common_part();
        ++by_tensor_cores;
      }
      const std::int64_t rows = call.means ? block.Tq : R;
      gpu_stages stages(call, list, rows, candidates.empty() ? past : candidates.front(), past, features);
      if (!stages.needs.empty()) {
        check.query_type = call.query_type;
        check.expect_stages(stages, candidates);
        if (testing::Test::HasFatalFailure()) return;
      }
      stage_check scores{policy, args, block, head};
      scores.additions = 2;  // of a product and of a length
      if (call.means) expect_means(scores, call, list, stages.queries);
      if (testing::Test::HasFatalFailure()) return;
      scores.expect_scores_and_list(stages.scoring, stages.scores.data(), listed);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

attention_case selection_case(attention_case c, std::size_t i) {
  c.bias = bias_kind::none;
  c.slopes = c.batch = false;
  c.sequences = 1;
  c.lists = lists_kind::none;
  c.positions = i % 2 ? positions_kind::from_zero : positions_kind::from_first;
  c.Tq = std::min<std::int64_t>(c.Tq, 70);
  c.Tk = std::min<std::int64_t>(c.Tk, 1000) + static_cast<std::int64_t>(i % 5) * 37;
  c.D = std::min<std::int64_t>(c.D, 256);
  c.Dv = std::min<std::int64_t>(c.Dv, 128);
  c.G = std::min<std::int64_t>(c.G, 4);
  if (i % 2 == 0) {
    constexpr std::int64_t dims[] = {64, 80, 96, 128, 192, 256};
    c.D = dims[i / 2 % 6];
    if (c.kv_type == skim::element::f32) c.kv_type = skim::element::bf16;
    c.values_in_keys = c.scales = false;
    c.padding = c.padding / 3 * 8;
    c.shift = c.shift * 8;
    if (c.kv_order == memory_order::interleaved) c.kv_order = memory_order::token_major;
  }
  c.Dv = std::min(c.Dv, c.D);
  return c;
}

constexpr int shards = 8;
class gpu_quoka : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(shard, gpu_quoka, testing::Range(0, shards));

TEST_P(gpu_quoka, every_stage_follows_from_the_one_before) {
  NEEDS_A_GPU();
  const std::vector<attention_case> cases = attention_sample(types_on_gpu);
  const std::int64_t counts[] = {4, 12, 17, 64, 80}, every[] = {0, 16, 50};
  const retention keeps[] = {retention::budget(1),   retention::budget(40, 4),    retention::preset(50),
                             retention::share(0.25), retention::budget(40, 0, 9), retention::preset_share(0.1)};
  for (std::size_t i = static_cast<std::size_t>(GetParam()); i < cases.size(); i += shards) {
    const attention_case c = selection_case(cases[i], i);
    SCOPED_TRACE(testing::Message() << c);
    skim::quoka policy;
    policy.queries = queries::needed(counts[i % 5]);
    if (i % 11 == 3) policy.queries.choice = skim::query_choice::all;
    policy.keep = keeps[i % 6].for_every(every[i % 3]).dense_under(i % 7 == 0 ? 60 : 0);
    policy.smooth = std::int64_t{1} + 2 * static_cast<std::int64_t>(i % 4);
    SCOPED_TRACE(testing::Message() << "n " << policy.queries.n << ", every " << policy.keep.every << ", smooth "
                                    << policy.smooth << ", keep " << i % 6);
    attention_inputs inputs(c);
    expect_selection_on_gpu(policy, inputs.args());
    if (HasFailure()) return;
  }
}

/// The paper's rule over the same cases, with inverse norms beside the keys where the case has them.
TEST_P(gpu_quoka, the_papers_rule_follows_stage_by_stage) {
  NEEDS_A_GPU();
  const std::vector<attention_case> cases = attention_sample(types_on_gpu);
  const std::int64_t counts[] = {4, 16, 17, 40}, every[] = {0, 16, 50};
  const retention keeps[] = {retention::budget(1), retention::budget(40, 4), retention::share(0.25)};
  for (std::size_t i = static_cast<std::size_t>(GetParam()); i < cases.size(); i += shards) {
    attention_case c = selection_case(cases[i], i);
    c.inverse_norms = i % 3 == 1;
    SCOPED_TRACE(testing::Message() << c);
    skim::quoka policy = skim::quoka::paper(queries::lowest_cosine(counts[i % 4]),
                                            keeps[i % 3].for_every(every[i / 2 % 3]).dense_under(0));
    if (i % 7 == 2) policy.queries = queries::newest(counts[i % 4]);
    if (i % 7 == 4) policy.queries = queries::all();
    if (i % 5 == 3) policy.smooth = 3;
    SCOPED_TRACE(testing::Message() << "n " << policy.queries.n << ", every " << policy.keep.every << ", keep "
                                    << i % 3);
    attention_inputs inputs(c);
    expect_selection_on_gpu(policy, inputs.args());
    if (HasFailure()) return;
  }
}

/// The shapes that tensor cores pick queries of: rows of a block up to 512, groups up to 8, ragged tails.
TEST(gpu_quoka_picks, by_tensor_cores_follow_from_the_rows) {
  NEEDS_A_GPU();
  struct shape {
    std::int64_t D, Tq, Tk, G, n, every;
    skim::element type;
  };
  by_tensor_cores = 0;
  int shapes = 0;
  for (const shape of : {shape{128, 128, 2000, 4, 64, 128, skim::element::bf16},
                         {128, 200, 1500, 3, 64, 128, skim::element::bf16},
                         {128, 130, 1100, 4, 64, 128, skim::element::f16},
                         {64, 97, 700, 5, 64, 0, skim::element::f16},
                         {64, 64, 900, 8, 33, 64, skim::element::bf16},
                         {128, 70, 900, 8, 48, 64, skim::element::bf16},
                         {128, 300, 1200, 1, 17, 150, skim::element::f16},
                         {64, 100, 4700, 2, 4, 32, skim::element::bf16},
                         {128, 9, 300, 7, 5, 0, skim::element::bf16},
                         {64, 2, 300, 6, 8, 1, skim::element::f16}}) {
    attention_case c = bf16_case(of.D, of.Tq, of.Tk, of.G);
    c.kv_type = c.q_type = of.type;
    for (const bool window : {false, true}) {
      SCOPED_TRACE(testing::Message() << c << ", n " << of.n << ", every " << of.every << ", window " << window);
      skim::quoka policy;
      policy.queries = queries::needed(of.n);
      policy.keep = retention::preset(60).for_every(of.every).dense_under(0);
      attention_inputs inputs(c);
      skim::attention_args args = inputs.args();
      if (window) args.mask.left = of.Tk / 2 + 1;
      expect_selection_on_gpu(policy, args);
      if (HasFailure()) return;
      ++shapes;
    }
  }
  EXPECT_GE(by_tensor_cores, shapes);
}

struct golden {
  const char* layer;
  std::int64_t n;
};

class gpu_rule_goldens : public testing::TestWithParam<golden> {};

TEST_P(gpu_rule_goldens, at_most_three_in_a_thousand_keys_differ) {
  NEEDS_A_GPU();
  const auto file = skim::safetensors::file::read(std::string(SKIM_GOLDENS) + "/" + GetParam().layer + ".safetensors");
  // The file's memory is not the GPU's.
  const auto tensor = [&](const char* name) { return *file.find(name)->view<3>(); };
  const auto copied = [&](const char* name) {
    const auto view = tensor(name);
    const char* const first = static_cast<const char*>(view.data);
    return std::vector<char>(first,
                             first + skim::bytes_of(view.type, view.extents[0] * view.extents[1] * view.extents[2]));
  };
  const std::vector<char> q = copied("q"), k = copied("k");
  skim::attention_args args;
  auto q_view = tensor("q"), k_view = tensor("k");
  q_view.data = q.data();
  k_view.data = k.data();
  args.q = q_view;
  args.kv = skim::contiguous_kv(k_view, k_view, k_view.extents[0]);
  args.kv.values_in_keys = true;
  args.scale = std::stof(*file.metadata("scale"));
  std::vector<float> out(static_cast<std::size_t>(q_view.extents[0] * q_view.extents[1] * q_view.extents[2]));
  args.out = skim::tensor_view<void, 3>(out.data(), {q_view.extents[0], q_view.extents[1], q_view.extents[2]},
                                        skim::element::f32);
  const skim::cuda::attention<skim::quoka> op{
      skim::quoka{queries::needed(GetParam().n), retention::preset(512).for_every(128).dense_under(0)}};
  guarded_device_memory workspace(op.workspace_bytes(args));
  selected_lists found(skim::list_rows(args, op.block_rows()), op.list_capacity(args), op.block_rows());
  ASSERT_TRUE(op.select(args, found.lists, workspace.get(), nullptr).ok());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const auto* const wanted = file.find("list_512_" + std::to_string(GetParam().n));
  ASSERT_NE(wanted, nullptr);
  std::size_t different = 0, all = 0;
  for (std::int64_t head = 0; head < args.kv.heads; ++head) {
    const auto list = found.row(head);
    const std::set<std::int64_t> listed(list.begin(), list.end());
    EXPECT_EQ(listed.size(), 512u);
    const std::int32_t* const row = static_cast<const std::int32_t*>(wanted->data) + head * 512;
    for (int i = 0; i < 512; ++i) different += listed.count(row[i]) == 0;
    all += 512;
  }
  std::printf("%zu of %zu keys differ\n", different, all);
  EXPECT_LE(static_cast<double>(different), 0.003 * static_cast<double>(all));
}

INSTANTIATE_TEST_SUITE_P(layers, gpu_rule_goldens,
                         testing::Values(golden{"smollm2_layer2_2048", 64}, golden{"smollm2_layer14_2048", 64},
                                         golden{"smollm2_layer27_4096", 64}, golden{"gemma3_layer5_2048", 64},
                                         golden{"gemma3_layer17_2048", 64}));

/// A sequence has the lists and the output that it has alone, whatever is beside it.
TEST(gpu_quoka_batch, sequences_do_not_know_of_each_other) {
  NEEDS_A_GPU();
  attention_case c = bf16_case(64, 150, 900, 3);
  c.sequences = 3;
  attention_inputs inputs(c), others(c);
  const skim::attention_args args = inputs.args();
  skim::quoka policy;
  policy.keep = retention::preset(64).for_every(32).dense_under(0);
  const skim::cuda::attention<skim::quoka> op{policy};
  guarded_device_memory workspace(op.workspace_bytes(args));
  ASSERT_TRUE(op.run(args, workspace.get(), nullptr).ok());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (std::int64_t s = 0; s < 3; ++s) {
    const skim::attention_sequence sequence = skim::sequence_at(args, s);
    skim::attention_args alone = others.args();
    alone.q.data = alone.q.at(sequence.first_row, 0);
    alone.q.extents[0] = sequence.Tq;
    alone.out.data = alone.out.at(sequence.first_row, 0);
    alone.out.extents[0] = sequence.Tq;
    alone.sequences = nullptr;
    alone.offsets = nullptr;
    alone.sequence_count = 1;
    alone.kv = others.view(s);
    ASSERT_TRUE(op.run(alone, workspace.get(), nullptr).ok());
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(inputs.out().bytes(), others.out().bytes());
}

/// A captured call replays: the same bits each time, as of a call that was not captured.
TEST(gpu_quoka_graph, replays_with_the_bits_of_a_call) {
  NEEDS_A_GPU();
  const attention_case c = bf16_case(128, 128, 3000, 4);
  attention_inputs direct(c), captured(c);
  const skim::cuda::attention<skim::quoka> op{
      skim::quoka{queries::needed(64), retention::preset(512).for_every(128).dense_under(0)}};
  guarded_device_memory workspace(op.workspace_bytes(direct.args()));
  const skim::cuda::launch_report first = op.run(direct.args(), workspace.get(), nullptr);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first.taken, skim::path::sparse);
  const captured_call call([&](cudaStream_t stream) { return op.run(captured.args(), workspace.get(), stream); });
  for (int i = 0; i < 3; ++i) {
    std::memset(captured.out().view().data, 0, 64);
    call.replay();
    EXPECT_EQ(direct.out().bytes(), captured.out().bytes());
  }
}

}  // namespace
