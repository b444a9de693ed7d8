// SPDX-License-Identifier: Apache-2.0
/// \file Our headers as a host with strict warnings includes them: every operation with every policy, and the templates
/// of everything that skim.hpp leaves out.
#define SKIM_UNIT run_all
#include "../link/unit.cpp"

#include <skim/calibrate/fastforward.hpp>
#include <skim/interop/eigen.hpp>
#include <skim/interop/fastforward_file.hpp>
#include <skim/interop/gguf_blocks.hpp>
#include <skim/interop/mask_reader.hpp>
#include <skim/interop/tbb.hpp>
#include <skim/reference/append.hpp>
#include <skim/reference/attention_importance.hpp>
#include <skim/reference/caote.hpp>
#include <skim/reference/eviction.hpp>
#include <skim/reference/fastforward.hpp>
#include <skim/reference/ffn.hpp>
#include <skim/reference/keydiff.hpp>
#include <skim/reference/linear.hpp>
#include <skim/reference/quoka.hpp>
#include <skim/testing/captured_mass.hpp>
#include <skim/testing/ffn_matchers.hpp>
#include <skim/testing/matchers.hpp>

skim::report run_on_tbb(unit_call call) {
  const skim::tbb_executor executor;
  call.executor = executor;
  return run_all(call);
}

std::vector<double> scores_of(const std::vector<std::vector<double>>& keys, const std::vector<bool>& stays) {
  using namespace skim;
  const std::vector<double> anchored[] = {
      reference::score(keydiff{{}, anchor::unit_mean{}}, keys), reference::score(keydiff{{}, anchor::mean{}}, keys),
      reference::score(keydiff{{}, anchor::median{}}, keys), reference::score(keydiff{{}, anchor::pairwise{}}, keys)};
  const std::vector<double> fast = reference::score(fast_caote<tova>{}, anchored[0], keys, stays);
  return reference::score(caote<tova>{}, fast, keys, stays);
}

bool is_right(const unit_call& call, const skim::testing::scored_slots& scored) {
  using namespace skim::testing;
  const skim::attention_args& args = call.attention;
  const skim::attention_sequence sequence = skim::sequence_at(args, 0);
  return satisfies(args.out, matches_attention(args, &call.lists)) && satisfies(args.lse, matches_lse(args)) &&
         satisfies(call.ffn.out, matches_ffn(call.ffn)) && satisfies(call.linear.out, matches_linear(call.linear)) &&
         satisfies(scored.candidates, matches_top_k({}, sequence, 0, scored));
}

const void* views_of(Eigen::MatrixXf& matrix, const skim::safetensors::tensor& tensor) {
  const auto stored = tensor.view<2>();
  return stored ? stored->at(1, 1) : skim::as_heads(matrix.transpose(), 2).at(1);
}
