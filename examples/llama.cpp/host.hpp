// SPDX-License-Identifier: Apache-2.0
/// \file What a host calls of the backend, how it keeps a cache bounded, and what programs here do with models and logits.
#pragma once

#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace prefill {

struct backend_functions {
  const char* (*configure)(const char* setting) = nullptr;  ///< null, or what is wrong with it
  void (*watch)(int on) = nullptr;
  std::int64_t (*leaving)(const char* rule, std::int64_t tokens, std::int64_t budget, std::int32_t* out) = nullptr;
};

/// Loads the backend, before any model. Throws std::runtime_error.
inline backend_functions load_backend(const std::string& path) {
  if (!ggml_backend_load(path.c_str())) throw std::runtime_error(path + " cannot be loaded");
  backend_functions found;
  const auto find = [](const char* name, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(
        ggml_backend_reg_get_proc_address(ggml_backend_reg_by_name("skim"), name));
    if (!function) throw std::runtime_error(std::string("the backend has no ") + name);
  };
  find("skim_configure", found.configure);
  find("skim_watch", found.watch);
  find("skim_leaving", found.leaving);
  return found;
}

/// After a chunk: lets tokens of sequence 0 leave the cache, so that at most `budget` stay. `held`: their positions, in the
/// order in which they came. Throws std::runtime_error.
inline void evict(llama_context& context, const backend_functions& skim, const char* rule, int budget,
                  std::vector<llama_pos>& held) {
  if (held.size() <= static_cast<std::size_t>(budget)) return;
  std::vector<std::int32_t> leaving(held.size());
  const std::int64_t count = skim.leaving(rule, static_cast<std::int64_t>(held.size()), budget, leaving.data());
  if (count < 0) throw std::runtime_error("the backend did not see the cache");
  for (std::int64_t i = count - 1; i >= 0; --i) {
    const auto at = held.begin() + leaving[static_cast<std::size_t>(i)];
    llama_memory_seq_rm(llama_get_memory(&context), 0, *at, *at + 1);
    held.erase(at);
  }
}

/// Decodes tokens [begin, end) of sequence 0, with logits where `wanted` says so. Throws std::runtime_error.
template <class Wanted>
void decode(llama_context& context, const std::vector<llama_token>& text, int begin, int end, const Wanted& wanted) {
  llama_batch batch = llama_batch_init(end - begin, 0, 1);
  for (int i = begin; i < end; ++i) {
    const int at = batch.n_tokens++;
    batch.token[at] = text[static_cast<std::size_t>(i)];
    batch.pos[at] = i;
    batch.n_seq_id[at] = 1;
    batch.seq_id[at][0] = 0;
    batch.logits[at] = wanted(i);
  }
  const int code = llama_decode(&context, batch);
  llama_batch_free(batch);
  if (code != 0) throw std::runtime_error("llama_decode says " + std::to_string(code));
}

/// Nats of a token, and whether it is the likeliest.
struct verdict {
  double loss;
  bool right;
};
inline verdict judge(const float* logits, int vocabulary, llama_token token) {
  const float* const best = std::max_element(logits, logits + vocabulary);
  double sum = 0;
  for (int t = 0; t < vocabulary; ++t) sum += std::exp(static_cast<double>(logits[t] - *best));
  return {std::log(sum) + static_cast<double>(*best - logits[token]), best - logits == token};
}

/// The file of a model with its weights in another type, `name`, made the first time. Throws std::runtime_error.
inline std::string widened(const std::string& path, llama_ftype type, const std::string& name) {
  const std::string wide = path + "." + name + ".gguf";
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = type;
  params.allow_requantize = true;
  if (!std::ifstream(wide) && llama_model_quantize(path.c_str(), wide.c_str(), &params) != 0) {
    throw std::runtime_error(wide + " cannot be made");
  }
  return wide;
}

}  // namespace prefill
