// SPDX-License-Identifier: Apache-2.0
/// \file How a prompt is prefilled, as the command line writes it: `quoka:queries=farthest_point,n=16,budget=512`.
///
/// A method is one or more parts joined by `+`; a part is a name, then `:` and `key=value` pairs joined by commas.
/// Each part answers one question: which cached keys does a chunk read, which tokens does the cache keep, or which FFN
/// neurons does a chunk compute?
#pragma once

#include <skim/eviction.hpp>
#include <skim/ffn.hpp>
#include <skim/interop/tbb.hpp>
#include <skim/workspace.hpp>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace needle {

using executor = skim::tbb_executor;

/// A selector of one layer, its type erased: the engine need not be compiled once per selector.
class layer_selector {
 public:
  virtual ~layer_selector() = default;
  virtual skim::report check(const skim::attention_args& args) const = 0;
  /// The most past keys that a KV head of the chunk will read; all of them = there is nothing to select.
  virtual std::int64_t list_capacity(const skim::attention_args& args) const = 0;
  virtual std::size_t workspace_bytes(const skim::attention_args& args, unsigned workers) const = 0;
  virtual skim::report select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory workspace,
                              const executor& threads) const = 0;
};

/// An evictor of one layer, its type erased; the members are those of `skim::cpu::eviction`.
class layer_evictor {
 public:
  virtual ~layer_evictor() = default;
  /// It needs the log-sum-exp of the chunk's attention.
  virtual bool reads_attention() const = 0;
  virtual skim::report check(const skim::eviction_args& args) const = 0;
  virtual std::size_t state_bytes(const skim::eviction_args& args) const = 0;
  virtual std::size_t workspace_bytes(const skim::eviction_args& args, unsigned workers) const = 0;
  virtual skim::report reset(const skim::eviction_args& args, skim::memory state, const executor& threads) const = 0;
  virtual skim::report run(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                           skim::memory workspace, const executor& threads) const = 0;
};

/// The FFN of one layer, its neuron selector's type erased; the members are those of `skim::cpu::ffn`.
class layer_ffn {
 public:
  virtual ~layer_ffn() = default;
  virtual skim::report check(const skim::ffn_args& args) const = 0;
  virtual std::size_t state_bytes(const skim::ffn_args& args) const = 0;
  virtual std::size_t workspace_bytes(const skim::ffn_args& args, unsigned workers) const = 0;
  virtual skim::report reset(const skim::ffn_args& args, skim::memory state, const executor& threads) const = 0;
  virtual skim::report run(const skim::ffn_args& args, skim::memory state, skim::memory workspace,
                           const executor& threads) const = 0;
};

struct model;

using selector_maker = std::function<std::unique_ptr<layer_selector>(std::uint64_t stream)>;
using evictor_maker = std::function<std::unique_ptr<layer_evictor>(std::uint64_t stream)>;
/// Makes the FFNs of all layers; throws `error` if the model lacks what they need. `weights` must outlive them.
using ffn_maker = std::function<std::vector<std::unique_ptr<layer_ffn>>(const model& weights, std::uint64_t seed)>;

struct method {
  std::string text;          ///< as written
  bool reads_norms = false;  ///< the cache must hold inverse key norms

  /// Make one layer's; `stream` tells layers and prompts apart where a rule draws at random.
  selector_maker make_selector;
  evictor_maker make_evictor;  ///< null: the cache keeps everything
  ffn_maker make_ffns;

  std::int64_t budget = 0;  ///< tokens that the cache keeps per layer and KV head, where there is an evictor
  skim::compaction compaction = skim::compaction::refill;
};

/// Throws `error`, which lists the valid names or values where one is unknown.
method parse_method(const std::string& text);

/// Parses each; `table:select`, `table:evict` and `table:ffn` stand for the methods of a table in models/README.md, `table`
/// for all.
std::vector<method> parse_methods(const std::vector<std::string>& texts);

}  // namespace needle
