// SPDX-License-Identifier: Apache-2.0
// One captured graph over a cache that grows: token counts, lists, block tables and positions are on the device, the host
// knows the most. Each replay is held to a call that was made with these counts.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/eviction.cuh>
#include <skim/cuda/evictor/keydiff.cuh>
#include <skim/cuda/selector/quoka.cuh>

#include "attention_rounding.hpp"
#include "bf16_case.hpp"
#include "captured_call.hpp"
#include "on_device.hpp"
#include "support/eviction_case.hpp"
#include "support/expect_attention.hpp"
#include "support/quoka_stages.hpp"

namespace {

using namespace skim_test;
using skim::retention;

/// A cache and a call over it that grow: behind a head's tokens all is NaN, and behind their pages the table names none.
class growing_inputs {
 public:
  explicit growing_inputs(const attention_case& c)
      : whole_(c), inputs_(c), from_(whole_.writable(0)), to_(inputs_.writable(0)) {
    if (from_.block_table) table_.assign(static_cast<std::size_t>(from_.capacity / from_.page_size), -1);
    lists_ = skim::index_lists{};
    if (!inputs_.lists()) return;
    lists_ = *inputs_.lists();
    indices_.resize(static_cast<std::size_t>(lists_.rows * lists_.capacity));
    counts_.resize(static_cast<std::size_t>(lists_.rows));
    lists_.indices = indices_.data();
    lists_.counts = counts_.data();
  }

  /// The call for at most so many tokens of a head.
  skim::attention_args args(std::int64_t tokens) {
    skim::attention_args args = inputs_.args();
    args.kv.tokens = tokens;
    args.kv.lengths = lengths_.data();
    if (from_.block_table) args.kv.block_table = table_.data();
    return args;
  }
  /// Null where everything is read.
  const skim::index_lists* lists() const { return inputs_.lists() ? &lists_ : nullptr; }
  attention_inputs& inputs() { return inputs_; }

  void grow_to(const std::vector<std::int32_t>& lengths) {
    lengths_.resize(lengths.size());
    std::copy(lengths.begin(), lengths.end(), lengths_.begin());
    std::int64_t most = 0;
    for (std::int64_t h = 0; h < from_.heads; ++h) {
      const std::int64_t length = lengths[static_cast<std::size_t>(h)];
      most = std::max(most, length);
      for (std::int64_t slot = 0; slot < from_.tokens; ++slot) {
        put(from_.k, to_.k, h, slot, slot < length);
        put(from_.v, to_.v, h, slot, slot < length);
      }
    }
    const std::int64_t pages = table_.empty() ? 0 : (most + from_.page_size - 1) / from_.page_size;
    for (std::int64_t page = 0; page < pages; ++page) table_[static_cast<std::size_t>(page)] = from_.block_table[page];
    if (lists()) list_thirds();
  }

 private:
  void put(const skim::kv_cache_tensor& from, const skim::kv_cache_tensor& to, std::int64_t h, std::int64_t slot,
           bool exists) {
    const auto bytes = static_cast<std::size_t>(skim::bytes_of(from.type, from.dim));
    void* const row = to_.row_address(to, h, slot);
    exists ? std::memcpy(row, from_.row_address(from, h, slot), bytes) : std::memset(row, 0xff, bytes);
  }
  void list_thirds() {
    std::fill(indices_.begin(), indices_.end(), -1);
    const skim::attention_sequence sequence{args(from_.tokens).kv, 0, inputs_.args().q.extents[0]};
    for (std::int64_t b = 0; b < skim::block_count(sequence.Tq, lists_.block_rows); ++b) {
      const skim::attention_sequence block = skim::block_of(sequence, b, lists_.block_rows);
      for (std::int64_t h = 0; h < from_.heads; ++h) {
        const std::int64_t r = b * from_.heads + h;
        counts_[static_cast<std::size_t>(r)] = 0;
        for (std::int64_t slot = h; slot < block.past(h); slot += 3) {
          lists_.row(r)[lists_.counts[r]++] = static_cast<std::int32_t>(slot);
        }
      }
    }
  }

  attention_inputs whole_, inputs_;
  skim::kv_cache from_, to_;
  std::vector<std::int32_t> lengths_ = std::vector<std::int32_t>(static_cast<std::size_t>(from_.heads)), table_,
                            indices_, counts_;
  skim::index_lists lists_;
};

/// Replays one graph while the cache grows. `run(args, lists, workspace, stream)`.
template <class Op, class Run>
void expect_replays(const attention_case& c, const Op& op, const Run& run) {
  constexpr bool selects = !std::is_same_v<Op, skim::cuda::attend>;
  SCOPED_TRACE(testing::Message() << c);
  growing_inputs captured(c), direct(c);
  const std::int64_t most = c.Tq + c.Tk;
  const auto room = [&](const skim::attention_args& args) {
    if constexpr (selects) return op.workspace_bytes(args);
    if constexpr (!selects) return op.workspace_bytes(args, c.block_rows);
  };
  guarded_device_memory workspace(room(captured.args(most)));
  const captured_call call(
      [&](cudaStream_t stream) { return run(op, captured.args(most), captured.lists(), workspace.get(), stream); });
  const auto Tq = static_cast<std::int32_t>(c.Tq), last = static_cast<std::int32_t>(most);
  for (const std::vector<std::int32_t>& lengths : std::vector<std::vector<std::int32_t>>{{Tq, Tq},
                                                                                         {Tq + 1, Tq},
                                                                                         {Tq + 3, Tq + 7},
                                                                                         {Tq + 90, Tq + 41},
                                                                                         {Tq + 150, Tq + 120},
                                                                                         {last / 2 + 1, last / 2 + 1},
                                                                                         {last / 3, last - 1},
                                                                                         {last, last}}) {
    SCOPED_TRACE(testing::Message() << "lengths " << lengths[0] << " " << lengths[1]);
    captured.grow_to(lengths);
    direct.grow_to(lengths);
    call.replay();
    if (testing::Test::HasFatalFailure()) return;
    const skim::attention_args args = direct.args(std::max(lengths[0], lengths[1]));
    guarded_device_memory own(room(args));
    const skim::cuda::launch_report report = run(op, args, direct.lists(), own.get(), nullptr);
    ASSERT_TRUE(report.ok()) << cudaGetErrorString(report.error);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_TRUE(workspace.guards_intact() && own.guards_intact());
    const auto expect_exact = [&](const skim::index_lists* lists) {
      const auto truth = skim::testing::attend_exactly(args, lists, rounding_of(args));
      EXPECT_TRUE(skim::testing::satisfies(captured.args(most).out,
                                           skim::testing::attention_matcher(truth, rounding_of(args))));
    };
    // Blocks that the shorter call knew to be dense list what their window hides too, and so cut sums elsewhere.
    const bool cut_alike = !selects || c.mask.left == skim::mask::unbounded;
    if (cut_alike) {
      EXPECT_EQ(captured.inputs().out().bytes(), direct.inputs().out().bytes());
      EXPECT_EQ(captured.inputs().lse().bytes(), direct.inputs().lse().bytes());
    }
    if constexpr (selects) {
      if (cut_alike) continue;
      const selected_lists read(op, args);
      ASSERT_TRUE(op.select(args, read.lists, own.get(), nullptr).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      expect_exact(&read.lists);
    } else {
      expect_exact(direct.lists());
    }
    if (testing::Test::HasFailure()) return;
  }
}

/// Shapes of every kernel and layout.
std::vector<attention_case> growing_cases() {
  std::vector<attention_case> cases;
  struct form {
    std::int64_t D, Tq, Tk, G;
    skim::kv_layout layout;
    skim::element type;
  };
  for (const form of : {form{128, 40, 2000, 4, skim::kv_layout::paged, skim::element::bf16},
                        {64, 130, 1100, 2, skim::kv_layout::ring, skim::element::f16},
                        {128, 1, 3000, 8, skim::kv_layout::contiguous, skim::element::bf16},
                        {96, 33, 1500, 3, skim::kv_layout::paged, skim::element::bf16},
                        {80, 7, 900, 1, skim::kv_layout::contiguous, skim::element::f16},
                        {40, 20, 700, 2, skim::kv_layout::paged, skim::element::f32}}) {
    attention_case c = bf16_case(of.D, of.Tq, of.Tk, of.G);
    c.kv_type = of.type;
    c.layout = of.layout;
    c.page_size = 16;
    c.lengths = c.lse = true;
    cases.push_back(c);
  }
  return cases;
}

const auto attend = [](const skim::cuda::attend& op, const skim::attention_args& args, const skim::index_lists* lists,
                       skim::memory workspace, cudaStream_t stream) {
  return lists ? op.run(args, *lists, workspace, stream) : op.run(args, workspace, stream);
};
const auto attention = [](const auto& op, const skim::attention_args& args, const skim::index_lists*,
                          skim::memory workspace, cudaStream_t stream) { return op.run(args, workspace, stream); };

TEST(gpu_growing, attends_to_everything) {
  NEEDS_A_GPU();
  for (attention_case c : growing_cases()) {
    expect_replays(c, skim::cuda::attend{}, attend);
    c.mask.left = 300;
    expect_replays(c, skim::cuda::attend{}, attend);
    if (HasFailure()) return;
  }
}

TEST(gpu_growing, attends_to_lists_and_by_positions) {
  NEEDS_A_GPU();
  for (attention_case c : growing_cases()) {
    c.lists = lists_kind::third;
    c.block_rows = 16;
    c.positions = positions_kind::holes;
    expect_replays(c, skim::cuda::attend{}, attend);
    if (HasFailure()) return;
  }
}

TEST(gpu_growing, selects_by_quoka) {
  NEEDS_A_GPU();
  for (attention_case c : growing_cases()) {
    for (const retention keep : {retention::preset(60), retention::preset_share(0.1), retention::budget(200, 4, 30)}) {
      SCOPED_TRACE(testing::Message() << "keep " << keep.count << " " << keep.fraction);
      skim::quoka policy;
      policy.keep = keep.for_every(32).dense_under(0);
      for (const std::int64_t left : {skim::mask::unbounded, std::int64_t{100}}) {
        c.mask.left = left;
        expect_replays(c, skim::cuda::attention<skim::quoka>{policy}, attention);
      }
      if (HasFailure()) return;
    }
  }
}

/// Tokens come and leave, by the same graph, while the host knows no more than how many there may be.
TEST(gpu_growing, evicts) {
  NEEDS_A_GPU();
  using skim::keydiff;
  for (const skim::compaction how : {skim::compaction::refill, skim::compaction::stable}) {
    eviction_case c;
    c.how = how;
    c.call = bf16_case(64, 12, 88, 2);
    c.call.positions = positions_kind::holes;
    const skim::cuda::eviction<keydiff<>> op{keydiff<>{retention::budget(60, 4, 10)}};
    attention_inputs source(c.call), captured(c.call), direct(c.call);
    const skim::kv_cache from = source.writable(0);
    std::vector<std::int32_t> lengths(2), own_lengths(2);
    const auto args_of = [&](attention_inputs& inputs, std::int64_t tokens, const std::vector<std::int32_t>& of) {
      skim::eviction_args args;
      args.kv = inputs.writable(0);
      args.kv.tokens = tokens;
      args.kv.lengths = of.data();
      args.new_tokens = c.call.Tq;
      args.how = how;
      return args;
    };
    const skim::eviction_args most = args_of(captured, from.tokens, lengths);
    lists_memory lists(2, 60), own_lists(2, 60);
    guarded_device_memory workspace(op.workspace_bytes(most)), own_workspace(op.workspace_bytes(most));
    guarded_device_memory state(op.state_bytes(most)), own_state(op.state_bytes(most));
    ASSERT_TRUE(op.reset(most, state.get(), nullptr).ok() && op.reset(most, own_state.get(), nullptr).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const captured_call call(
        [&](cudaStream_t stream) { return op.run(most, lists.lists, state.get(), workspace.get(), stream); });
    bool leaves = false;
    for (std::int64_t step = 0; step < 12; ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      for (std::int64_t h = 0; h < 2; ++h) {  // the second head begins with some
        const auto head = static_cast<std::size_t>(h);
        const std::int32_t before = step == 0 ? static_cast<std::int32_t>(7 * h) : lists.counts[head];
        for (attention_inputs* const to : {&captured, &direct}) {
          const skim::kv_cache kv = to->writable(0);
          for (std::int64_t i = 0; i < 12; ++i) {
            const std::int64_t own = (step * 7 + i) % from.tokens;
            for (const bool keys : {true, false}) {
              const skim::kv_cache_tensor &of = keys ? kv.k : kv.v, &its = keys ? from.k : from.v;
              std::memcpy(kv.row_address(of, h, before + i), from.row_address(its, h, own),
                          static_cast<std::size_t>(skim::bytes_of(of.type, of.dim)));
            }
            kv.positions[h * kv.positions_stride + before + i] = static_cast<std::int32_t>(step * 12 + i);
          }
        }
        lengths[head] = own_lengths[head] = before + 12;
      }
      call.replay();
      if (HasFatalFailure()) return;
      const skim::eviction_args args = args_of(direct, std::max(lengths[0], lengths[1]), own_lengths);
      ASSERT_TRUE(op.run(args, own_lists.lists, own_state.get(), own_workspace.get(), nullptr).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      for (std::int64_t h = 0; h < 2; ++h) ASSERT_EQ(lists.row(h), own_lists.row(h));
      leaves |= lists.counts[0] < lengths[0];
      EXPECT_TRUE(cache_snapshot(captured.cache(0), captured.view(0)) ==
                  cache_snapshot(direct.cache(0), direct.view(0)));
      EXPECT_TRUE(workspace.guards_intact() && own_workspace.guards_intact() && state.guards_intact());
      if (HasFailure()) return;
    }
    EXPECT_TRUE(leaves);
  }
}

}  // namespace
