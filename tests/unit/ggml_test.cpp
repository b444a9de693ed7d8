// SPDX-License-Identifier: Apache-2.0
// ggml's nodes by skim: products with weights, and attention over tensors laid out as ggml's are: masks of every kind that llama.cpp makes, and some
// that it does not, against attention in doubles to which the mask is a bias over all cells.
#include "support/executors.hpp"
#include "support/values.hpp"

#include <skim/cpu/attention.hpp>
#include <skim/cpu/linear.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/interop/ggml.hpp>
#include <skim/interop/ggml_linear.hpp>
#include <skim/testing/attention_truth.hpp>

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <list>
#include <thread>

struct ggml_context {
  std::list<ggml_tensor> nodes;
  ggml_custom_op_t function = nullptr;
  void* userdata = nullptr;
};

ggml_tensor* ggml_custom_4d(ggml_context* graph, ggml_type type, std::int64_t ne0, std::int64_t ne1, std::int64_t ne2,
                            std::int64_t ne3, ggml_tensor** args, int n_args, ggml_custom_op_t fun, int,
                            void* userdata) {
  ggml_tensor made = {};
  made.type = type;
  made.op = GGML_OP_CUSTOM;
  const std::int64_t ne[] = {ne0, ne1, ne2, ne3};
  std::size_t bytes = ggml_type_size(type);
  for (int axis = 0; axis < 4; ++axis) {
    made.ne[axis] = ne[axis];
    made.nb[axis] = bytes;
    bytes *= static_cast<std::size_t>(ne[axis]);
  }
  for (int i = 0; i < n_args; ++i) made.src[i] = args[i];
  graph->nodes.push_back(made);
  graph->function = fun;
  graph->userdata = userdata;
  return &graph->nodes.back();
}

/// Blocks of 32: a scale in f16, then bytes (q8_0) or halves of bytes, the first 16 numbers the low ones, 8 for 0 (q4_0).
static void widen_q8_0(const void* x, float* y, std::int64_t k) {
  for (std::int64_t i = 0; i < k; ++i) {
    const char* const block = static_cast<const char*>(x) + i / 32 * 34;
    y[i] = skim::load_element(block, skim::element::f16, 0) *
           static_cast<float>(reinterpret_cast<const signed char*>(block)[2 + i % 32]);
  }
}
static void widen_q4_0(const void* x, float* y, std::int64_t k) {
  for (std::int64_t i = 0; i < k; ++i) {
    const unsigned char* const block = static_cast<const unsigned char*>(x) + i / 32 * 18;
    const int both = block[2 + i % 16], half = i % 32 < 16 ? both & 15 : both >> 4;
    y[i] = skim::load_element(block, skim::element::f16, 0) * static_cast<float>(half - 8);
  }
}
const ggml_type_traits* ggml_get_type_traits(ggml_type type) {
  static const ggml_type_traits q8_0 = {widen_q8_0}, q4_0 = {widen_q4_0}, none = {nullptr};
  return type == GGML_TYPE_Q8_0 ? &q8_0 : type == GGML_TYPE_Q4_0 ? &q4_0 : &none;
}

namespace {

using namespace skim_test;

constexpr float hidden = -std::numeric_limits<float>::infinity();

/// A tensor with memory: extents ne, stored in the order of axes `order`, the first of them next to each other.
struct stored_tensor {
  ggml_tensor tensor = {};
  std::vector<char> bytes;

  stored_tensor() = default;
  stored_tensor(ggml_type type, std::initializer_list<std::int64_t> ne, const std::array<int, 4>& order, unsigned seed,
                std::int64_t gap = 0) {
    tensor.type = type;
    std::copy(ne.begin(), ne.end(), tensor.ne);
    std::size_t next = ggml_type_size(type);
    for (const int axis : order) {
      tensor.nb[axis] = next;
      next *= static_cast<std::size_t>(tensor.ne[axis] + (axis == order[1] ? gap : 0));
    }
    bytes.assign(next, '\x5a');
    tensor.data = bytes.data();
    if (seed == 0) return;
    const std::vector<float> values = normal_values(count(), seed);
    std::size_t i = 0;
    for_each([&](void* at) { skim::store_element(at, skim::element_of_ggml(type), 0, values[i++]); });
  }

  std::int64_t count() const { return tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]; }
  char* at(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
    return bytes.data() + static_cast<std::size_t>(a) * tensor.nb[0] + static_cast<std::size_t>(b) * tensor.nb[1] +
           static_cast<std::size_t>(c) * tensor.nb[2] + static_cast<std::size_t>(d) * tensor.nb[3];
  }
  template <class Body>
  void for_each(const Body& body) {
    for (std::int64_t d = 0; d < tensor.ne[3]; ++d)
      for (std::int64_t c = 0; c < tensor.ne[2]; ++c)
        for (std::int64_t b = 0; b < tensor.ne[1]; ++b)
          for (std::int64_t a = 0; a < tensor.ne[0]; ++a) body(at(a, b, c, d));
  }
};

/// Blocks of any bits and small scales; the f32 numbers of `of` become theirs.
stored_tensor blocks(ggml_type type, stored_tensor& of, unsigned seed) {
  stored_tensor made = of;
  const std::size_t rows = static_cast<std::size_t>(of.count() / of.tensor.ne[0]);
  const std::size_t row = static_cast<std::size_t>(of.tensor.ne[0]) / 32 * ggml_type_size(type);
  made.tensor.type = type;
  made.tensor.nb[0] = ggml_type_size(type);
  for (int axis = 1; axis < 4; ++axis)
    made.tensor.nb[axis] = of.tensor.nb[axis] / (sizeof(float) * 32) * ggml_type_size(type);
  made.bytes.assign(rows * row + of.bytes.size(), 0);
  made.tensor.data = made.bytes.data();
  std::uint32_t bits = seed;
  for (char& byte : made.bytes) byte = static_cast<char>((bits = bits * 1664525u + 1013904223u) >> 24);
  for (std::int64_t d = 0; d < of.tensor.ne[3]; ++d) {
    for (std::int64_t c = 0; c < of.tensor.ne[2]; ++c) {
      for (std::int64_t b = 0; b < of.tensor.ne[1]; ++b) {
        for (std::int64_t i = 0; i < of.tensor.ne[0] / 32; ++i)
          skim::store_element(made.at(i, b, c, d), skim::element::f16, 0, 0.01f);
        ggml_get_type_traits(type)->to_float(made.at(0, b, c, d), reinterpret_cast<float*>(of.at(0, b, c, d)),
                                             of.tensor.ne[0]);
      }
    }
  }
  return made;
}

struct problem {
  const char* name;
  std::int64_t rows, cells, streams = 1;
  std::function<float(std::int64_t stream, std::int64_t row, std::int64_t cell)> mask = {};  // what is added
  std::int64_t Hq = 6, Hk = 2, D = 24, Dv = 24;
  ggml_type type = GGML_TYPE_F16;
  bool sinks = false, v_in_k = false, heads_inside = true;  // heads between rows and dimensions, as in llama.cpp
  float soft_cap = 0;
  std::int64_t mask_streams = 0;  // 0: all
};

/// The node's operands in memory, as llama.cpp lays them out: rows and cells outside of heads, or as a permuted view.
struct node_memory {
  stored_tensor q, k, v, mask, sinks, out;
  ggml_tensor node = {};

  explicit node_memory(const problem& p, unsigned seed = 1) {
    const std::array<int, 4> order = p.heads_inside ? std::array<int, 4>{0, 2, 1, 3} : std::array<int, 4>{0, 1, 2, 3};
    q = stored_tensor(GGML_TYPE_F32, {p.D, p.rows, p.Hq, p.streams}, order, seed, 1);
    k = stored_tensor(p.type, {p.D, p.cells, p.Hk, p.streams}, order, seed + 1, 2);
    v = stored_tensor(p.type, {p.Dv, p.cells, p.Hk, p.streams}, order, seed + 2);
    out = stored_tensor(GGML_TYPE_F32, {p.Dv, p.Hq, p.rows, p.streams}, {0, 1, 2, 3}, 0);
    if (p.v_in_k) {
      v.tensor = k.tensor;
      v.tensor.ne[0] = p.Dv;
    }
    if (p.mask) {
      const std::int64_t streams = p.mask_streams > 0 ? p.mask_streams : p.streams;
      mask = stored_tensor(GGML_TYPE_F16, {p.cells, p.rows + 3, 1, streams}, {0, 1, 2, 3}, 0);
      write_mask(p);
    }
    if (p.sinks) sinks = stored_tensor(GGML_TYPE_F32, {p.Hq, 1, 1, 1}, {0, 1, 2, 3}, seed + 3);
    node = out.tensor;
    node.op = GGML_OP_FLASH_ATTN_EXT;
    node.src[0] = &q.tensor;
    node.src[1] = &k.tensor;
    node.src[2] = &v.tensor;
    node.src[3] = p.mask ? &mask.tensor : nullptr;
    node.src[4] = p.sinks ? &sinks.tensor : nullptr;
    const float numbers[] = {0.3f, 0, p.soft_cap};
    std::memcpy(node.op_params, numbers, sizeof numbers);
  }

  void write_mask(const problem& p) {
    for (std::int64_t s = 0; s < mask.tensor.ne[3]; ++s) {
      for (std::int64_t t = 0; t < p.rows; ++t) {
        for (std::int64_t c = 0; c < p.cells; ++c)
          skim::store_element(mask.at(c, t, 0, s), skim::element::f16, 0, p.mask(s, t, c));
      }
    }
  }

  /// Every output is attention over all cells with the mask as a bias, within the bound of the arithmetic.
  void expect_exact() {
    const skim::ggml_operands x = skim::ggml_operands_of(node);
    const std::int64_t rows = q.tensor.ne[1], cells = k.tensor.ne[1];
    for (std::int64_t s = 0; s < q.tensor.ne[3]; ++s) {
      for (std::int64_t t = 0; t < rows; t += cells) expect_exact(x, s, t, std::min(cells, rows - t));
    }
  }

 private:
  void expect_exact(const skim::ggml_operands& x, std::int64_t s, std::int64_t first, std::int64_t rows) {
    skim::attention_args args = skim::ggml_shape_of(x);
    args.q = skim::rows(skim::detail::ggml_rows(q.tensor, s), first, rows);
    args.out = skim::rows(skim::detail::ggml_result(node, s), first, rows);
    args.kv =
        skim::contiguous_kv(skim::detail::ggml_rows(k.tensor, s), skim::detail::ggml_rows(v.tensor, s), k.tensor.ne[1]);
    args.mask = skim::mask::full();
    args.sink_logits = x.sinks ? static_cast<const float*>(x.sinks->data) : nullptr;
    if (x.mask) {
      const auto added = skim::detail::ggml_mask_rows(*x.mask, s % x.mask->ne[3], first, rows, x.k->ne[1]);
      args.bias = {added.data, {1, rows, x.k->ne[1]}, {0, added.strides[0], 1}, added.type};
    }
    const auto truth = skim::testing::attend_exactly(args);
    std::size_t wrong = 0;
    for (std::int64_t t = 0; t < truth.Tq; ++t) {
      for (std::int64_t h = 0; h < truth.Hq; ++h) {
        for (std::int64_t d = 0; d < truth.Dv; ++d) {
          const std::size_t i = static_cast<std::size_t>((t * truth.Hq + h) * truth.Dv + d);
          const double got = static_cast<double>(skim::load_element(out.at(d, h, first + t, s), skim::element::f32, 0));
          const double room = truth.out_bound[i] + 0x1p-24 * std::fabs(truth.out[i]);
          wrong += !(std::fabs(got - truth.out[i]) <= room);
        }
      }
    }
    EXPECT_EQ(wrong, 0u) << "of " << truth.out.size() << " numbers of stream " << s;
  }
};

using sees = std::function<bool(std::int64_t, std::int64_t, std::int64_t)>;
auto of(sees seen) {
  return [seen](std::int64_t s, std::int64_t t, std::int64_t c) { return seen(s, t, c) ? 0.0f : hidden; };
}

/// Cells in an order without meaning, and back.
std::int64_t shuffled(std::int64_t cell) {
  return (cell * 37 + 11) % 256;
}

const std::vector<problem> problems{
    {"no mask", 33, 90},
    {"no mask, more rows than cells", 90, 33},
    {"causal, padded", 50, 256, 1, of([](auto, auto t, auto c) { return c <= 150 + t; })},
    {"causal, no past", 50, 64, 1, of([](auto, auto t, auto c) { return c <= t; })},
    {"one row", 1, 64, 1, of([](auto, auto, auto c) { return c <= 40; })},
    {"cells in any order", 50, 256, 1, of([](auto, auto t, auto c) { return shuffled(c) <= 150 + t; })},
    {"a window", 50, 256, 1, of([](auto, auto t, auto c) { return shuffled(c) <= 150 + t && shuffled(c) > 90 + t; })},
    {"two sequences in a row", 50, 256, 1,
     of([](auto, auto t, auto c) { return t < 30 ? c % 2 == 0 && c / 2 <= 60 + t : c % 2 == 1 && c / 2 <= 20 + t; })},
    {"two sequences, rows in turn", 50, 256, 1,
     of([](auto, auto t, auto c) { return c % 2 == t % 2 && c / 2 <= 60 + t / 2; })},
    {"a prefix that two share", 40, 256, 1,
     of([](auto, auto t, auto c) { return c < 60 || (t < 20 ? c >= 100 && c <= 100 + t : c >= 150 && c <= 130 + t); })},
    {"generation beside a prompt", 43, 256, 1,
     of([](auto, auto t, auto c) { return t < 3 ? c % 5 == t && c < 200 : c % 5 >= 3 && c <= 150 + t; })},
    {"streams", 30, 128, 3, of([](auto s, auto t, auto c) { return c <= 30 * s + t; })},
    {"streams that share a mask", 30, 128, 4, of([](auto, auto t, auto c) { return c <= 30 + t; }), 6, 2, 24, 24,
     GGML_TYPE_F16, false, false, false, 0, 1},
    {"rows outside of heads", 30, 128, 2, of([](auto, auto t, auto c) { return c <= 30 + t; }), 6, 2, 24, 24,
     GGML_TYPE_F16, false, false, false},
    {"rows that see all", 40, 128, 1, of([](auto, auto, auto c) { return c < 100; })},
    {"an image in a prompt", 50, 128, 1,
     of([](auto, auto t, auto c) { return c <= 60 + (t >= 10 && t < 30 ? 29 : t); })},
    {"some rows see nothing", 40, 128, 1, of([](auto, auto t, auto c) { return t % 3 != 0 && c <= 60 + t; })},
    {"anything", 40, 128, 1, of([](auto, auto t, auto c) { return (t * 7919 + c * 104729) % 11 < 4; })},
    {"other numbers", 40, 128, 2,
     [](std::int64_t, std::int64_t t, std::int64_t c) {
       return c > 60 + t ? hidden : -0.25f * static_cast<float>((60 + t - c) % 8);
     }},
    {"sink logits and a soft cap", 40, 128, 1, of([](auto, auto t, auto c) { return c <= 60 + t; }), 6, 2, 24, 24,
     GGML_TYPE_F16, true, false, true, 3},
    {"bf16, groups of 5", 40, 128, 1, of([](auto, auto t, auto c) { return c <= 60 + t; }), 5, 1, 72, 40,
     GGML_TYPE_BF16},
    {"f32", 40, 128, 1, of([](auto, auto t, auto c) { return c <= 60 + t; }), 4, 4, 17, 9, GGML_TYPE_F32},
    {"V in K", 40, 128, 1, of([](auto, auto t, auto c) { return c <= 60 + t; }), 16, 1, 96, 64, GGML_TYPE_F16, false,
     true},
    {"V in K, heads", 40, 128, 2, of([](auto, auto t, auto c) { return shuffled(c) <= 60 + t; }), 4, 2, 96, 64,
     GGML_TYPE_F16, false, true},
};

class ggml_node : public testing::TestWithParam<problem> {};
TEST_P(ggml_node, is_attention_under_its_mask) {
  node_memory memory(GetParam());
  const skim::ggml_operands x = skim::ggml_operands_of(memory.node);
  ASSERT_TRUE(skim::check(x).ok());
  skim::ggml_attention<skim::cpu::attention<>> attention;
  const skim::report answer = attention.compute(x, skim::serial_executor{});
  char text[200];
  ASSERT_TRUE(answer.ok()) << skim::describe(answer, text, sizeof text);
  memory.expect_exact();
}
INSTANTIATE_TEST_SUITE_P(masks, ggml_node, testing::ValuesIn(problems), [](const auto& each) {
  std::string name = each.param.name;
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
});

problem causal(std::int64_t past) {
  return {"causal", 40, 256, 1, of([past](auto, auto t, auto c) { return c <= past + t; })};
}

/// Layers share a mask; with the first layer's keys comes another, in the same memory.
TEST(GgmlAttention, ReadsAMaskOnceInAGraph) {
  node_memory first(causal(100), 1), second(causal(100), 5);
  second.node.src[3] = &first.mask.tensor;
  skim::ggml_attention<skim::cpu::attention<>> attention;
  const auto compute = [&](node_memory& memory) {
    const skim::report answer = attention.compute(skim::ggml_operands_of(memory.node), skim::serial_executor{});
    char text[200];
    ASSERT_TRUE(answer.ok()) << skim::describe(answer, text, sizeof text);
  };
  for (const std::int64_t past : {100, 140}) {
    first.write_mask(causal(past));
    compute(first);
    first.expect_exact();
    compute(second);
    second.expect_exact();
  }
  // One that a host did not say anew, of which the edges tell: it is not taken for the one before.
  node_memory third(causal(100), 9);
  third.node.src[3] = &first.mask.tensor;
  first.write_mask(causal(33));
  compute(third);
  third.expect_exact();
  // What changes between the edges is not seen: the mask is not read again.
  node_memory fourth(causal(100), 13);
  fourth.node.src[3] = &first.mask.tensor;
  skim::store_element(first.mask.at(0, 20, 0, 0), skim::element::f16, 0, hidden);
  compute(fourth);
  first.write_mask(causal(33));
  fourth.expect_exact();
}

/// Sparse where there is something to leave out, dense where rows look both ways or the mask has numbers.
TEST(GgmlAttention, ThinsWhatIsCausal) {
  const skim::quoka rule{skim::queries::needed(8), skim::retention::budget(20).dense_under(0, 4)};
  const auto outputs = [&](const problem& p, bool sparse) {
    node_memory memory(p);
    const skim::ggml_operands x = skim::ggml_operands_of(memory.node);
    skim::ggml_attention<skim::cpu::attention<skim::quoka>, skim::cpu::attention<>> thinned{{rule}};
    skim::ggml_attention<skim::cpu::attention<>> dense;
    EXPECT_TRUE(
        (sparse ? thinned.compute(x, skim::serial_executor{}) : dense.compute(x, skim::serial_executor{})).ok());
    return memory.out.bytes;
  };
  EXPECT_NE(outputs(causal(100), true), outputs(causal(100), false));
  for (const problem& p : problems) {
    const std::string name = p.name;
    if (name != "no mask" && name != "rows that see all" && name != "other numbers" && name != "one row") continue;
    EXPECT_EQ(outputs(p, true), outputs(p, false)) << name;
  }
}

/// By the threads of a team, in a node of a graph: the bits of one thread.
TEST(GgmlAttention, IsAnOpOfAGraph) {
  for (const bool sinks : {false, true}) {
    problem p = causal(100);
    p.sinks = sinks;
    node_memory memory(p);
    skim::ggml_attention<skim::cpu::attention<>> alone, shared;
    ASSERT_TRUE(alone.compute(skim::ggml_operands_of(memory.node), skim::serial_executor{}).ok());
    ggml_context graph;
    skim::ggml_attention_op<skim::cpu::attention<>> op;
    op.attention = &shared;
    op.scale = 0.3f;
    ggml_tensor* const made = op.node(&graph, &memory.q.tensor, &memory.k.tensor, &memory.v.tensor, &memory.mask.tensor,
                                      sinks ? &memory.sinks.tensor : nullptr);
    ASSERT_NE(made, nullptr);
    std::vector<char> result(memory.out.bytes.size());
    made->data = result.data();
    ASSERT_TRUE(shared.reserve(skim::ggml_operands_of(memory.node), 3).ok());
    std::vector<std::thread> team;
    for (int i = 0; i < 3; ++i) team.emplace_back([&, i] { graph.function(made, i, 3, graph.userdata); });
    for (std::thread& member : team) member.join();
    EXPECT_TRUE(op.last.ok());
    EXPECT_EQ(result, memory.out.bytes);
  }
}

/// No rows: nothing is written; no cells: zeros.
TEST(GgmlAttention, OfNothing) {
  for (const bool masked : {false, true}) {
    for (const std::int64_t rows : {0, 5}) {
      problem p{"nothing", rows, rows == 0 ? 8 : 0};
      if (masked) p.mask = of([](auto, auto, auto) { return true; });
      node_memory memory(p);
      skim::ggml_attention<skim::cpu::attention<>> attention;
      EXPECT_TRUE(attention.compute(skim::ggml_operands_of(memory.node), skim::serial_executor{}).ok());
      memory.out.for_each([](void* at) { EXPECT_EQ(skim::load_element(at, skim::element::f32, 0), 0.0f); });
    }
  }
}

/// Another graph looks at other streams of the same cache, its mask lies where the last one's did: it is read again, however
/// much of it is the same.
TEST(GgmlAttention, ReadsTheMaskOfOtherStreams) {
  const auto streams = [](std::int64_t past, std::int64_t hole) {
    return problem{"", 40, 128, 2,
                   of([=](auto s, auto t, auto c) { return c <= t + s * past && (t != 20 || c != hole); })};
  };
  node_memory first(streams(0, -1), 1), second(streams(0, -1), 5);
  second.node.src[3] = &first.mask.tensor;
  const auto compute = [](auto& attention, node_memory& memory) {
    EXPECT_TRUE(attention.compute(skim::ggml_operands_of(memory.node), skim::serial_executor{}).ok());
    memory.expect_exact();
  };
  {
    skim::ggml_attention<skim::cpu::attention<>> attention;  // told by the last row of the second stream
    compute(attention, first);
    first.write_mask(streams(20, -1));
    compute(attention, second);
  }
  skim::ggml_attention<skim::cpu::attention<>> attention;  // told by the cache alone
  ggml_tensor cache = {};
  cache.data = first.k.tensor.data;
  first.k.tensor.view_src = second.k.tensor.view_src = &cache;
  compute(attention, first);
  first.write_mask(streams(20, 5));
  compute(attention, second);
}

/// Memory that is not there is a status, and nothing is written, for rows that are widened as for others.
TEST(GgmlAttention, RefusesOperandsWithoutMemory) {
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
    for (const char* const name : {"q.data", "k.data", "v.data", "mask.data", "out.data"}) {
      problem p{"", 40, 128, 1, of([](auto, auto t, auto c) { return c <= 60 + t; }), 6, 2, 32, 32};
      node_memory memory(p);
      for (stored_tensor* const each : {&memory.k, &memory.v}) {
        if (type == GGML_TYPE_Q8_0) *each = stored_tensor(type, {32, 128, 2, 1}, {0, 2, 1, 3}, 0);
      }
      const std::string which = name;
      ggml_tensor& taken = which == "q.data"      ? memory.q.tensor
                           : which == "k.data"    ? memory.k.tensor
                           : which == "v.data"    ? memory.v.tensor
                           : which == "mask.data" ? memory.mask.tensor
                                                  : memory.node;
      taken.data = nullptr;
      skim::ggml_attention<skim::cpu::attention<>> attention;
      const std::vector<char> before = memory.out.bytes;
      const skim::report answer = attention.compute(skim::ggml_operands_of(memory.node), skim::serial_executor{});
      char text[200];
      EXPECT_EQ(answer.code, skim::status::null_pointer);
      EXPECT_EQ(std::string(skim::argument_name(answer, text, sizeof text)), name);
      EXPECT_EQ(memory.out.bytes, before);
    }
  }
}

/// K and V of blocks, each as it comes: the bits of a cache of f32 that holds the same numbers, on every layout and thread.
TEST(GgmlAttention, WidensQuantisedKeysAndValues) {
  for (const bool inside : {false, true}) {
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
      problem p{"", 40, 128, 2, of([](auto, auto t, auto c) { return c <= 60 + t; }), 6, 2, 64, 32, GGML_TYPE_F32};
      p.heads_inside = inside;
      node_memory memory(p);
      // Gaps between rows that are no whole blocks are not ggml's.
      memory.k = stored_tensor(GGML_TYPE_F32, {64, 128, 2, 2}, {0, 1, 2, 3}, 7);
      memory.v = stored_tensor(GGML_TYPE_F32, {32, 128, 2, 2}, {0, 2, 1, 3}, 8);
      stored_tensor k = blocks(type, memory.k, 3), v = blocks(GGML_TYPE_Q8_0, memory.v, 4);
      const auto compute = [&](ggml_tensor& keys, ggml_tensor& values, skim::executor_ref executor) {
        memory.node.src[1] = &keys;
        memory.node.src[2] = &values;
        skim::ggml_attention<skim::cpu::attention<>> attention;
        std::fill(memory.out.bytes.begin(), memory.out.bytes.end(), '\0');
        EXPECT_TRUE(skim::check(skim::ggml_operands_of(memory.node)).ok());
        EXPECT_TRUE(attention.reserve(skim::ggml_operands_of(memory.node), 3).ok());
        EXPECT_TRUE(attention.compute(skim::ggml_operands_of(memory.node), executor).ok());
        return memory.out.bytes;
      };
      const std::vector<char> wide = compute(memory.k.tensor, memory.v.tensor, skim::serial_executor{});
      EXPECT_NE(wide, std::vector<char>(wide.size()));
      EXPECT_EQ(compute(k.tensor, v.tensor, skim::serial_executor{}), wide);
      EXPECT_EQ(compute(k.tensor, memory.v.tensor, skim::serial_executor{}), wide);
      EXPECT_EQ(compute(memory.k.tensor, v.tensor, skim::serial_executor{}), wide);
      run_on({executor_kind::host_pool, 3},
             [&](skim::executor_ref executor) { EXPECT_EQ(compute(k.tensor, v.tensor, executor), wide); });
    }
  }
}

/// What is refused, and by which name: the host's own kernel takes it.
TEST(GgmlAttention, RefusesBeforeTheGraphRuns) {
  const auto expect = [](const char* argument, const std::function<void(node_memory&)>& change) {
    node_memory memory(causal(100));
    change(memory);
    for (stored_tensor* const each : {&memory.q, &memory.k, &memory.v, &memory.mask}) each->tensor.data = nullptr;
    memory.node.data = nullptr;
    const skim::report answer = skim::check(skim::ggml_operands_of(memory.node));
    char text[200];
    EXPECT_FALSE(answer.ok()) << argument;
    EXPECT_EQ(std::string(skim::argument_name(answer, text, sizeof text)), argument);
  };
  node_memory good(causal(100));
  EXPECT_TRUE(skim::check(skim::ggml_operands_of(good.node)).ok());
  expect("k", [](node_memory& m) { m.k.tensor.type = GGML_TYPE_I32; });
  expect("v", [](node_memory& m) { m.v.tensor.type = GGML_TYPE_I32; });
  expect("k", [](node_memory& m) { m.k.tensor.type = GGML_TYPE_Q8_0; });  // of 24 numbers: no whole block
  expect("q", [](node_memory& m) { m.q.tensor.type = GGML_TYPE_Q8_0; });
  expect("v", [](node_memory& m) { std::swap(m.v.tensor.nb[0], m.v.tensor.nb[1]); });  // transposed
  expect("q", [](node_memory& m) { m.q.tensor.nb[1] += 1; });
  expect("max_bias", [](node_memory& m) { m.node.op_params[1] = 0x41000000; });  // 8: ALiBi
  expect("scale", [](node_memory& m) { m.node.op_params[0] = 0; });
  expect("v.ne[1]", [](node_memory& m) { m.v.tensor.ne[1] -= 1; });
  expect("v.ne[2]", [](node_memory& m) { m.v.tensor.ne[2] = 1; });
  expect("k.ne[3]", [](node_memory& m) { m.k.tensor.ne[3] = 2; });
  expect("mask.ne[0]", [](node_memory& m) { m.mask.tensor.ne[0] = 255; });
  expect("mask.ne[1]", [](node_memory& m) { m.mask.tensor.ne[1] = 39; });
  expect("mask.ne[2]", [](node_memory& m) { m.mask.tensor.ne[2] = 6; });
  expect("mask.ne[3]", [](node_memory& m) { m.mask.tensor.ne[3] = 2; });
  expect("mask", [](node_memory& m) { m.mask.tensor.type = GGML_TYPE_Q8_0; });
  expect("out.ne[2]", [](node_memory& m) { m.node.ne[2] = 39; });
  expect("out.ne[3]", [](node_memory& m) { m.node.ne[3] = 2; });
  for (const std::int64_t heads : {5, 6}) {  // a number too few, and f16
    expect(heads == 5 ? "sinks.ne[0]" : "sinks", [heads](node_memory& m) {
      m.sinks = stored_tensor(heads == 5 ? GGML_TYPE_F32 : GGML_TYPE_F16, {heads, 1, 1, 1}, {0, 1, 2, 3}, 1);
      m.node.src[4] = &m.sinks.tensor;
    });
  }
}

/// A product with a weight, its operands in memory.
struct product_memory {
  stored_tensor weight, x, out;

  product_memory(ggml_type type, std::int64_t n_in, std::int64_t n_out, std::int64_t M, std::int64_t a = 1,
                 std::int64_t b = 1)
      : weight(type, {n_in, n_out, 1, 1}, {0, 1, 2, 3}, 1, 3),
        x(GGML_TYPE_F32, {n_in, M, a, b}, {0, 2, 1, 3}, 2, 1),
        out(GGML_TYPE_F32, {n_out, M, a, b}, {0, 1, 2, 3}, 0, 2) {}
  skim::ggml_product operands() { return {&weight.tensor, &x.tensor, &out.tensor}; }

  /// The result of the linear layer by itself, matrix by matrix.
  std::vector<char> expected() {
    const std::vector<char> before = out.bytes;
    const auto view = [](stored_tensor& t, std::int64_t a, std::int64_t b) {
      return skim::tensor_view<void, 2>(t.at(0, 0, a, b), {t.tensor.ne[1], t.tensor.ne[0]},
                                        {static_cast<std::int64_t>(t.tensor.nb[1] / t.tensor.nb[0]), 1},
                                        skim::element_of_ggml(t.tensor.type));
    };
    const skim::cpu::linear<> op;
    for (std::int64_t b = 0; b < out.tensor.ne[3]; ++b) {
      for (std::int64_t a = 0; a < out.tensor.ne[2]; ++a) {
        skim::linear_args args;
        args.weight = view(weight, 0, 0);
        args.x = view(x, a, b);
        args.out = view(out, a, b);
        skim::buffer workspace(op.workspace_bytes(args, 1));
        EXPECT_TRUE(op.run(args, workspace, skim::serial_executor{}));
      }
    }
    std::vector<char> found = before;
    found.swap(out.bytes);
    out.tensor.data = out.bytes.data();
    return found;
  }
  std::vector<char> computed(skim::executor_ref executor) {
    skim::ggml_linear<skim::cpu::linear<>> linear;
    EXPECT_TRUE(skim::check(operands()));
    EXPECT_TRUE(linear.compute(operands(), executor));
    return out.bytes;
  }
};

/// The bits of a linear layer, on every type of weight that is stored, for all matrices of x.
TEST(GgmlLinear, IsALinearLayer) {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
    product_memory memory(type, 40, 37, 5, 2, 3);
    const std::vector<char> expected = memory.expected();
    EXPECT_NE(expected, memory.out.bytes);
    EXPECT_EQ(memory.computed(skim::serial_executor{}), expected);
    EXPECT_EQ(memory.computed(skim::serial_executor{}), expected);
  }
}

/// The bits of a weight of f32 that holds the same numbers; the larger one is widened in four pieces.
TEST(GgmlLinear, WidensQuantisedWeights) {
  for (const std::array<std::int64_t, 2>& shape : {std::array<std::int64_t, 2>{96, 50}, {32768, 400}}) {
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
      product_memory memory(GGML_TYPE_F32, shape[0], shape[1], 3, 1, 2);
      memory.weight = stored_tensor(GGML_TYPE_F32, {shape[0], shape[1], 1, 1}, {0, 1, 2, 3}, 1);
      stored_tensor quantised = blocks(type, memory.weight, 3);
      const std::vector<char> expected = memory.expected();
      memory.weight = quantised;
      memory.weight.tensor.data = memory.weight.bytes.data();
      EXPECT_EQ(memory.computed(skim::serial_executor{}), expected);
      run_on({executor_kind::host_pool, 3}, [&](skim::executor_ref executor) {
        std::fill(memory.out.bytes.begin(), memory.out.bytes.end(), '\x5a');
        EXPECT_EQ(memory.computed(executor), expected);
      });
    }
  }
}

TEST(GgmlLinear, OfNothing) {
  for (const std::array<std::int64_t, 3>& tokens : {std::array<std::int64_t, 3>{0, 1, 1}, {3, 0, 1}, {3, 1, 0}}) {
    product_memory memory(GGML_TYPE_F32, 40, 37, tokens[0], tokens[1], tokens[2]);
    const std::vector<char> before = memory.out.bytes;
    EXPECT_EQ(memory.computed(skim::serial_executor{}), before);
  }
}

/// What is refused, by which name, and that nothing is written.
TEST(GgmlLinear, Refuses) {
  const auto expect = [](const char* argument, const std::function<void(skim::ggml_product&)>& change) {
    product_memory memory(GGML_TYPE_F32, 40, 37, 5, 2, 2);
    skim::ggml_product operands = memory.operands();
    change(operands);
    skim::ggml_linear<skim::cpu::linear<>> linear;
    const std::vector<char> before = memory.out.bytes;
    const skim::report answer = linear.compute(operands, skim::serial_executor{});
    char text[200];
    EXPECT_FALSE(answer.ok()) << argument;
    EXPECT_EQ(std::string(skim::argument_name(answer, text, sizeof text)), argument);
    EXPECT_EQ(memory.out.bytes, before);
  };
  const auto at = [](const ggml_tensor* t) -> ggml_tensor& { return *const_cast<ggml_tensor*>(t); };
  expect("weight", [](skim::ggml_product& p) { p.weight = nullptr; });
  expect("x", [](skim::ggml_product& p) { p.x = nullptr; });
  expect("out", [](skim::ggml_product& p) { p.out = nullptr; });
  expect("weight.data", [&](skim::ggml_product& p) { at(p.weight).data = nullptr; });
  expect("x.data", [&](skim::ggml_product& p) { at(p.x).data = nullptr; });
  expect("out.data", [](skim::ggml_product& p) { p.out->data = nullptr; });
  expect("weight", [&](skim::ggml_product& p) { at(p.weight).type = GGML_TYPE_I32; });
  expect("weight",
         [&](skim::ggml_product& p) { at(p.weight).type = GGML_TYPE_Q8_0; });  // of 40 numbers: no whole block
  expect("x", [&](skim::ggml_product& p) { at(p.x).type = GGML_TYPE_Q8_0; });
  expect("out", [](skim::ggml_product& p) { p.out->type = GGML_TYPE_Q8_0; });
  expect("x", [&](skim::ggml_product& p) { std::swap(at(p.x).nb[0], at(p.x).nb[1]); });  // transposed
  expect("weight.ne[2]", [&](skim::ggml_product& p) { at(p.weight).ne[2] = 2; });
  expect("weight.ne[3]", [&](skim::ggml_product& p) { at(p.weight).ne[3] = 2; });
  expect("out.ne[0]", [](skim::ggml_product& p) { p.out->ne[0] = 36; });
  expect("out.ne[2]", [](skim::ggml_product& p) { p.out->ne[2] = 1; });
  expect("out.ne[3]", [](skim::ggml_product& p) { p.out->ne[3] = 1; });
  for (const int axis : {2, 3}) {
    const std::string name = "x.ne[" + std::to_string(axis) + "]";
    expect(name.c_str(), [&](skim::ggml_product& p) { at(p.x).ne[axis] = p.out->ne[axis] = -1; });
    expect(name.c_str(), [&](skim::ggml_product& p) { at(p.x).ne[axis] = p.out->ne[axis] = std::int64_t{1} << 40; });
    const std::string stride = ".strides[" + std::to_string(3 - axis) + "]";
    expect(("x" + stride).c_str(), [&](skim::ggml_product& p) { at(p.x).nb[axis] = std::size_t{1} << 63; });
    expect(("out" + stride).c_str(), [&](skim::ggml_product& p) { p.out->nb[axis] = std::size_t{1} << 63; });
    expect(("out" + stride).c_str(), [&](skim::ggml_product& p) { p.out->nb[axis] = 8; });
  }
  expect("out.extents[0]", [](skim::ggml_product& p) { p.out->ne[1] = 4; });
  expect("weight.extents[1]", [&](skim::ggml_product& p) { at(p.x).ne[0] = 39; });
  expect("weight", [&](skim::ggml_product& p) { at(p.weight).nb[1] += 1; });
  expect("out.strides[1]", [](skim::ggml_product& p) { p.out->nb[1] = 4; });
}

}  // namespace
