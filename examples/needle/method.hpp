// SPDX-License-Identifier: Apache-2.0
/// \file How a prompt is prefilled, as the command line writes it: `quoka:queries=farthest_point,n=16,budget=512`.
///
/// A method is one or more parts joined by `+`; a part is a name, then `:` and `key=value` pairs joined by commas.
/// Each part answers one question: which cached keys does a chunk read, which tokens does the cache keep, or which FFN
/// neurons does a chunk compute?
#pragma once

#include <skim/eviction.hpp>
#include <skim/ffn.hpp>
#include <skim/workspace.hpp>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace needle {

/// An operation of one layer, its policy's type erased: the engine need not be compiled once per policy. Members are those
/// of the operation.
template <class Args>
class layer_operation {
 public:
  using arguments = Args;

  virtual ~layer_operation() = default;
  virtual skim::report check(const Args& args) const = 0;
  virtual std::size_t state_bytes(const Args& args) const = 0;
  virtual std::size_t workspace_bytes(const Args& args, unsigned workers) const = 0;
  virtual skim::report reset(const Args& args, skim::memory state, skim::executor_ref threads) const = 0;
};

class layer_selector : public layer_operation<skim::attention_args> {
 public:
  virtual skim::policy_needs needs() const = 0;
  virtual std::int64_t list_capacity(const skim::attention_args& args) const = 0;
  /// Rows of a chunk that share a choice; 0 = all.
  virtual std::int64_t block_rows() const = 0;
  /// The past keys that a KV head will read; all of them = there is nothing to select.
  virtual std::int64_t keys_read(std::int64_t past) const = 0;
  virtual skim::report select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory workspace,
                              skim::executor_ref threads) const = 0;
};

class layer_evictor : public layer_operation<skim::eviction_args> {
 public:
  virtual skim::policy_needs needs() const = 0;
  virtual skim::report run(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                           skim::memory workspace, skim::executor_ref threads) const = 0;
  /// The steps of `run`, for layers that evict together.
  virtual skim::report observe(const skim::eviction_args& args, skim::memory state, skim::memory workspace,
                               skim::executor_ref threads) const = 0;
  virtual skim::report score(const skim::eviction_args& args, const skim::tensor_view<float, 2>& scores,
                             skim::memory state, skim::memory workspace, skim::executor_ref threads) const = 0;
  virtual skim::report choose(const skim::eviction_args& args, const skim::tensor_view<const float, 2>& scores,
                              const skim::index_lists& lists, skim::memory workspace,
                              skim::executor_ref threads) const = 0;
  virtual skim::report compact(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                               skim::memory workspace, skim::executor_ref threads) const = 0;
};

class layer_ffn : public layer_operation<skim::ffn_args> {
 public:
  virtual skim::report run(const skim::ffn_args& args, skim::memory state, skim::memory workspace,
                           skim::executor_ref threads) const = 0;
};

struct model;

using selector_maker = std::function<std::unique_ptr<layer_selector>(std::uint64_t stream)>;
using evictor_maker = std::function<std::unique_ptr<layer_evictor>(std::uint64_t stream)>;
/// Makes the FFNs of all layers; throws `error` if the model lacks what they need. `weights` must outlive them.
using ffn_maker = std::function<std::vector<std::unique_ptr<layer_ffn>>(const model& weights, std::uint64_t seed)>;

struct method {
  std::string text;  ///< as written

  /// Make one layer's; `stream` tells layers and prompts apart where a rule draws at random.
  selector_maker make_selector;
  std::set<std::int64_t> dense_layers;  ///< read everything, whatever the selector
  evictor_maker make_evictor;           ///< null: the cache keeps everything
  ffn_maker make_ffns;

  std::int64_t budget = 0;  ///< tokens that the cache keeps per layer and KV head, where there is an evictor
  skim::compaction compaction = skim::compaction::refill;
  bool shared = false;  ///< all layers and KV heads keep the same tokens
};

/// Throws `error`, which lists the valid names or values where one is unknown.
method parse_method(const std::string& text);

/// Parses each; `table:select`, `table:evict` and `table:ffn` stand for the methods of a table in models/README.md, `table`
/// for all; `table:budgets`, `table:bounded` and `table:neurons` for those of a real model's.
std::vector<method> parse_methods(const std::vector<std::string>& texts);

}  // namespace needle
