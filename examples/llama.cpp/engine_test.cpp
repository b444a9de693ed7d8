// SPDX-License-Identifier: Apache-2.0
// The example engine beside llama.cpp, on the same files: the same tokens, the same perplexity, and with weights in f32 and
// f16 the same greedy tokens behind the beginnings of eight chapters. By weights in f16 llama.cpp rounds activations to f16
// too, and parts from itself where two tokens are nearly as likely: there its greedy tokens are those of the same numbers
// stored in f32. Arguments: a novel, models of quantised weights.
#include "engine.hpp"
#include "host.hpp"
#include "opened.hpp"
#include "prompt.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

namespace {

using prefill::judge;
using prefill::tokens;
using prefill::widened;

constexpr int chapters = 8, judged_tokens = 1024, prompt_tokens = 200, generated = 64, chunk = 256, threads = 2;
// Of perplexities. By weights in f16 llama.cpp multiplies activations rounded to f16, by quantised ones those rounded to 8
// bits, which alone costs it half a percent of Gemma's.
constexpr double apart_wide = 0.0002, apart_quantised = 0.01;

bool all_good = true;
void expect(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  all_good &= good;
}

/// One sequence in llama.cpp.
class reference {
 public:
  reference(llama_model& model, int capacity) : vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(&model))) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(capacity);
    params.n_batch = params.n_ubatch = chunk;
    params.n_threads = params.n_threads_batch = threads;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context_.reset(llama_init_from_model(&model, params));
    if (!context_) throw std::runtime_error("llama.cpp gives no context");
  }

  /// Appends tokens; `look(i, logits)` sees those behind each of `text`'s.
  template <class Look>
  void feed(const tokens& text, const Look& look) {
    const int first = static_cast<int>(text_.size());
    text_.insert(text_.end(), text.begin(), text.end());
    for (int begin = first; begin < static_cast<int>(text_.size()); begin += chunk) {
      const int end = std::min(begin + chunk, static_cast<int>(text_.size()));
      prefill::decode(*context_, text_, begin, end, [](int) { return true; });
      for (int i = begin; i < end; ++i) look(i - first, llama_get_logits_ith(context_.get(), i - begin));
    }
  }

  /// Greedily, and by how much each token's logit is above the next best.
  tokens generate(const tokens& prompt, std::vector<float>& leads) {
    tokens found;
    const auto choose = [&](int, const float* logits) {
      std::vector<float> best(2);
      std::partial_sort_copy(logits, logits + vocabulary_, best.begin(), best.end(), std::greater<>());
      likeliest_ = static_cast<llama_token>(std::find(logits, logits + vocabulary_, best[0]) - logits);
      lead_ = best[0] - best[1];
    };
    feed(prompt, choose);
    while (found.size() < generated) {
      found.push_back(likeliest_);
      leads.push_back(lead_);
      feed({likeliest_}, choose);
    }
    return found;
  }

 private:
  int vocabulary_;
  std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, llama_free};
  tokens text_;
  llama_token likeliest_ = 0;
  float lead_ = 0;
};

class comparison {
 public:
  /// `reference_path`: what llama.cpp reads.
  comparison(const std::string& path, const std::string& reference_path, const std::string& novel)
      : engine_(needle::open_model(path)) {
    theirs_.reset(llama_model_load_from_file(reference_path.c_str(), llama_model_default_params()));
    if (!theirs_) throw std::runtime_error(reference_path + " cannot be loaded");
    const llama_vocab* const vocab = llama_model_get_vocab(theirs_.get());
    const tokens all = prefill::tokenised(vocab, novel, false);
    expect(engine_.words->encode(novel) == all, path + ": " + std::to_string(all.size()) + " tokens of the text");

    std::size_t at = 0;
    while (chapters_.size() < chapters && (at = novel.find("\nCHAPTER ", at)) != novel.npos) {
      chapters_.push_back(prefill::tokenised(vocab, novel.substr(++at), true));
      if (chapters_.back().size() < judged_tokens) throw std::runtime_error("a chapter is too short");
      chapters_.back().resize(judged_tokens);
    }
    if (chapters_.size() < chapters) throw std::runtime_error("the text has too few chapters");
  }

  void perplexities(double most_apart) {
    double ours = 0, theirs = 0;
    for (const tokens& text : chapters_) {
      const auto next = [&](std::int64_t i) { return text[static_cast<std::size_t>(i) + 1]; };
      reference(*theirs_, judged_tokens).feed(text, [&](int i, const float* logits) {
        if (i + 1 < judged_tokens) theirs += judge(logits, vocabulary(), next(i)).loss;
      });
      needle::session session = new_session(judged_tokens);
      session.feed(text, [&](std::int64_t first, std::int64_t count) {
        const needle::matrix logits = session.logits(first, count);
        for (std::int64_t i = 0; i < count && first + i + 1 < judged_tokens; ++i)
          ours += judge(logits.row(i).data(), vocabulary(), next(first + i)).loss;
      });
    }
    constexpr double judged = chapters * (judged_tokens - 1);
    const double apart = std::expm1((ours - theirs) / judged);
    char line[160];
    std::snprintf(line, sizeof line, "     perplexity of %.0f tokens: llama.cpp %.5f, the engine %+.4f %%", judged,
                  std::exp(theirs / judged), 100 * apart);
    expect(std::abs(apart) <= most_apart, line);
  }

  void greedy_tokens() {
    int same = 0;
    std::string parted;
    for (const tokens& chapter : chapters_) {
      const tokens prompt(chapter.begin(), chapter.begin() + prompt_tokens);
      std::vector<float> leads;
      const tokens theirs = reference(*theirs_, prompt_tokens + generated).generate(prompt, leads);
      needle::session session = new_session(prompt_tokens + generated);
      session.feed(prompt);
      const tokens ours = session.generate(generated);
      const auto at = std::mismatch(theirs.begin(), theirs.end(), ours.begin()).first - theirs.begin();
      same += at == generated ? 1 : 0;
      if (at < generated) {
        char line[120];
        std::snprintf(line, sizeof line, "; one parts at token %d, where llama.cpp's two best logits are %.4f apart",
                      static_cast<int>(at), static_cast<double>(leads[static_cast<std::size_t>(at)]));
        parted += line;
      }
    }
    expect(same == chapters, "     " + std::to_string(same) + " of " + std::to_string(chapters) +
                                 " prompts go on with the same " + std::to_string(generated) + " greedy tokens" +
                                 parted);
  }

 private:
  int vocabulary() const { return llama_vocab_n_tokens(llama_model_get_vocab(theirs_.get())); }

  needle::session new_session(std::int64_t capacity) const {
    return {engine_.weights, dense_, {capacity, 128, skim::element::f32, 0}, needle::executor()};
  }

  needle::opened_model engine_;
  const needle::method dense_ = needle::parse_method("dense");
  std::unique_ptr<llama_model, decltype(&llama_model_free)> theirs_{nullptr, llama_model_free};
  std::vector<tokens> chapters_;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("expected a novel and models");
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  ggml_backend_load_all();
  llama_backend_init();
  const std::string novel = needle::text_in(argv[1]);
  for (int i = 2; i < argc; ++i) {
    const std::string given = argv[i], f32 = widened(given, LLAMA_FTYPE_ALL_F32, "f32"),
                      f16 = widened(given, LLAMA_FTYPE_MOSTLY_F16, "f16");
    comparison(given, given, novel).perplexities(apart_quantised);
    comparison(f16, f16, novel).perplexities(apart_wide);
    for (const auto& [path, in_f32] : {std::pair{f32, f32}, {f16, widened(f16, LLAMA_FTYPE_ALL_F32, "f32")}}) {
      comparison same(path, in_f32, novel);
      same.perplexities(apart_wide);
      same.greedy_tokens();
    }
  }
  std::printf(all_good ? "all good\n" : "FAILED\n");
  return all_good ? 0 : 1;
} catch (const std::exception& problem) {
  std::printf("FAIL %s\n", problem.what());
  return 1;
}
