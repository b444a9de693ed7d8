// SPDX-License-Identifier: Apache-2.0
// The FFN by oneDNN: three products on weights in the layout that it prefers, SiLU and the gate's product in them.
#include "ffn.hpp"

#include <dnnl.hpp>

#include <chrono>
#include <limits>

// Of the OpenMP runtime that oneDNN brings along, whatever compiles this file.
extern "C" void omp_set_num_threads(int threads);

namespace bench {
namespace {

using dnnl::memory;
using tag = memory::format_tag;

/// One of the FFN's products: [M, inputs] times weights [inputs, outputs].
struct product {
  enum class then { nothing, silu, times_gate };
  const void* (ffn_layers::*weights)(std::int64_t layer) const;
  std::int64_t inputs, outputs;
  bool rows_are_outputs;  ///< of the stored weights
  then finish;
};

/// How oneDNN may compute it. Which is fastest depends on version, processor, type and shape: all are tried.
struct variant {
  bool inner_product;  ///< not matmul
  bool fused;          ///< multiplies by the gate's values as it stores, not afterwards
};

/// A product in one variant, and the weights of layers as it wants them.
class step {
 public:
  step(const ffn_layers& of, const product& what, variant how, const dnnl::engine& engine)
      : of_(&of), what_(what), how_(how), engine_(engine) {
    const std::int64_t M = of.shape.M;
    dnnl::post_ops after;
    if (what.finish == product::then::silu) after.append_eltwise(1, dnnl::algorithm::eltwise_swish, 1, 0);
    const memory::desc from = plain({M, what.inputs}), to = plain({M, what.outputs});
    if (multiplies() && how.fused) after.append_binary(dnnl::algorithm::binary_mul, to);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(after);
    const memory::desc weights(sizes(), type(), tag::any);
    if (how.inner_product) {
      const dnnl::inner_product_forward::primitive_desc made({dnnl::prop_kind::forward_inference, from, weights, to},
                                                             attributes, engine);
      primitive_ = dnnl::inner_product_forward(made);
      layout_ = made.weights_desc();
    } else {
      const dnnl::matmul::primitive_desc made({from, weights, to}, attributes, engine);
      primitive_ = dnnl::matmul(made);
      layout_ = made.weights_desc();
    }
    multiply_ = dnnl::binary({{dnnl::algorithm::binary_mul, to, to, to}, engine});
  }

  void arrange(std::int64_t layers, dnnl::stream& stream) {
    const tag order = how_.inner_product == what_.rows_are_outputs ? tag::ab : tag::ba;
    for (std::int64_t layer = static_cast<std::int64_t>(weights_.size()); layer < layers; ++layer) {
      memory from({sizes(), type(), order}, engine_, const_cast<void*>((of_->*what_.weights)(layer)));
      weights_.emplace_back(layout_, engine_);
      dnnl::reorder(from, weights_.back()).execute(stream, from, weights_.back());
      stream.wait();
    }
  }

  /// `gate`: what the product is multiplied by, if it is.
  void run(std::int64_t layer, const memory& from, const memory& to, const memory& gate, dnnl::stream& stream) {
    std::unordered_map<int, memory> with{
        {DNNL_ARG_SRC, from}, {DNNL_ARG_WEIGHTS, weights_[static_cast<std::size_t>(layer)]}, {DNNL_ARG_DST, to}};
    if (multiplies() && how_.fused) with.insert({DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, gate});
    primitive_.execute(stream, with);
    if (multiplies() && !how_.fused) {
      multiply_.execute(stream, {{DNNL_ARG_SRC_0, to}, {DNNL_ARG_SRC_1, gate}, {DNNL_ARG_DST, to}});
    }
  }

 private:
  bool multiplies() const { return what_.finish == product::then::times_gate; }
  memory::data_type type() const {
    return of_->type == skim::element::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  }
  memory::desc plain(const memory::dims& extents) const { return {extents, type(), tag::ab}; }
  memory::dims sizes() const {
    return how_.inner_product ? memory::dims{what_.outputs, what_.inputs} : memory::dims{what_.inputs, what_.outputs};
  }

  const ffn_layers* of_;
  product what_;
  variant how_;
  dnnl::engine engine_;
  dnnl::primitive primitive_;
  dnnl::binary multiply_;
  memory::desc layout_;
  std::vector<memory> weights_;
};

class onednn_ffn {
 public:
  explicit onednn_ffn(const ffn_layers& of)
      : engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        x_(activations(of, of.shape.d, const_cast<void*>(of.x()))),
        gate_values_(activations(of, of.shape.f, DNNL_MEMORY_ALLOCATE)),
        values_(activations(of, of.shape.f, DNNL_MEMORY_ALLOCATE)),
        out_(activations(of, of.shape.d, DNNL_MEMORY_ALLOCATE)),
        gate_(fastest(of, {&ffn_layers::gate, of.shape.d, of.shape.f, true, product::then::silu}, x_, gate_values_)),
        up_(fastest(of, {&ffn_layers::up, of.shape.d, of.shape.f, true, product::then::times_gate}, x_, values_)),
        down_(fastest(of, {&ffn_layers::down, of.shape.f, of.shape.d, false, product::then::nothing}, values_, out_)) {
    for (step* one : {&gate_, &up_, &down_}) one->arrange(of.count(), stream_);
  }

  void run(std::int64_t layer, void* out) {
    out_.set_data_handle(out);
    gate_.run(layer, x_, gate_values_, {}, stream_);
    up_.run(layer, x_, values_, gate_values_, stream_);
    down_.run(layer, values_, out_, {}, stream_);
    stream_.wait();
  }

 private:
  memory activations(const ffn_layers& of, std::int64_t columns, void* data) const {
    const auto type = of.type == skim::element::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    return {{{of.shape.M, columns}, type, tag::ab}, engine_, data};
  }

  step fastest(const ffn_layers& of, const product& what, const memory& from, const memory& to) {
    std::optional<step> best;
    double least = std::numeric_limits<double>::infinity();
    for (const variant how : {variant{true, false}, variant{false, false}, variant{true, true}, variant{false, true}}) {
      if (how.fused && what.finish != product::then::times_gate) continue;
      step candidate(of, what, how, engine_);
      candidate.arrange(1, stream_);
      for (int i = 0; i < 4; ++i) {
        const auto start = std::chrono::steady_clock::now();
        candidate.run(0, from, to, gate_values_, stream_);
        stream_.wait();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (seconds < least) best = candidate;
        least = std::min(least, seconds);
      }
    }
    return *best;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  memory x_, gate_values_, values_, out_;
  step gate_, up_, down_;
};

ffn_call make(const ffn_layers& layers, const skim::tbb_executor& executor) {
  omp_set_num_threads(static_cast<int>(executor.concurrency()));
  const auto ffn = std::make_shared<onednn_ffn>(layers);
  return [ffn](std::int64_t layer, void* out) { ffn->run(layer, out); };
}

}  // namespace

ffn_peer onednn_peer() {
  return {"onednn", make, false};
}

}  // namespace bench
