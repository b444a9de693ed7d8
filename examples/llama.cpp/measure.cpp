// SPDX-License-Identifier: Apache-2.0
// What skim does to a model in llama.cpp: seconds of the prompt, loss of the text, and whether facts in it are found. Each
// method is the same unpatched llama.cpp with the backend set another way; methods take turns.
#include "host.hpp"
#include "prompt.hpp"

#include <ggml-backend.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <thread>

namespace {

using namespace prefill;
using json = nlohmann::json;

struct method {
  std::string name, setting;  // what `SKIM_QUOKA` would say
  std::string evictor;        // none: the cache holds the prompt; else, of a cache of `bounded_tokens`
};

constexpr int bounded_tokens = 2048;
const std::vector<method> methods = {{"llama.cpp", "off", ""},
                                     {"skim dense", "dense", ""},
                                     {"QUOKA 512", "budget=512", ""},
                                     {"QUOKA 1024", "budget=1024", ""},
                                     {"QUOKA, paper's rule 1024", "paper,budget=1024", ""},
                                     {"standard evictor 2048", "dense", "standard"},
                                     {"KeyDiff 2048", "dense", "keydiff"}};

/// A name of the table, or a setting of the backend's.
std::vector<method> methods_of(const std::vector<std::string>& wanted) {
  std::vector<method> found;
  for (const std::string& name : wanted) {
    const auto known =
        std::find_if(methods.begin(), methods.end(), [&](const method& each) { return each.name == name; });
    found.push_back(known != methods.end() ? *known : method{name, name, ""});
  }
  return found;
}

struct options {
  std::string model, backend, text, out;
  std::vector<std::string> wanted;
  int length = 4096, prompts = 2, ubatch = 512, threads = 2, repeats = 3;
};

backend_functions skim_backend;

using model_pointer = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using context_pointer = std::unique_ptr<llama_context, decltype(&llama_free)>;

context_pointer new_context(llama_model& model, const options& chosen, const method& used) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(used.evictor.empty() ? chosen.length : bounded_tokens + chosen.ubatch);
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(chosen.ubatch);
  params.n_threads = params.n_threads_batch = chosen.threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  context_pointer context(llama_init_from_model(&model, params), llama_free);
  if (!context) throw std::runtime_error("llama.cpp gives no context of " + std::to_string(chosen.length) + " tokens");
  return context;
}

/// The prompt, chunk by chunk; `look(i, logits)` sees place wanted[i] of those, which ascend, several threads at once.
template <class Look>
void read_prompt(llama_context& context, const tokens& text, int ubatch, const std::string& evictor,
                 const std::vector<int>& wanted, const Look& look) {
  std::size_t next = 0;
  std::vector<llama_pos> held;
  for (int begin = 0; begin < static_cast<int>(text.size()); begin += ubatch) {
    const int end = std::min(begin + ubatch, static_cast<int>(text.size()));
    std::size_t behind = next;
    decode(context, text, begin, end, [&](int i) {
      const bool here = behind < wanted.size() && wanted[behind] == i;
      behind += here ? 1 : 0;
      return here;
    });
#pragma omp parallel for
    for (std::size_t i = next; i < behind; ++i) look(i, llama_get_logits_ith(&context, wanted[i] - begin));
    next = behind;
    for (int i = begin; i < end; ++i) held.push_back(i);
    if (!evictor.empty() && end < static_cast<int>(text.size()))
      evict(context, skim_backend, evictor.c_str(), bounded_tokens, held);
  }
  llama_synchronize(&context);
}

json quality(llama_context& context, int vocabulary, const prompt& asked, int ubatch, const std::string& evictor) {
  std::map<int, bool> places;  // whose next token is judged, and whether that is an answer's
  for (const int at : asked.prose) places[at - 1] = false;
  for (const int at : asked.answers) places[at - 1] = true;
  std::vector<int> wanted;
  for (const auto& [place, is_answer] : places) wanted.push_back(place);
  std::vector<verdict> found(wanted.size());
  read_prompt(context, asked.text, ubatch, evictor, wanted, [&](std::size_t i, const float* logits) {
    found[i] = judge(logits, vocabulary, asked.text[static_cast<std::size_t>(wanted[i]) + 1]);
  });
  double loss = 0;
  int right = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (places[wanted[i]]) {
      right += found[i].right;
    } else {
      loss += found[i].loss;
    }
  }
  return {{"nll", loss / static_cast<double>(asked.prose.size())}, {"right", right}, {"answers", asked.answers.size()}};
}

double seconds_of(llama_context& context, const prompt& asked, int ubatch, const std::string& evictor) {
  const auto start = std::chrono::steady_clock::now();
  read_prompt(context, asked.text, ubatch, evictor, {static_cast<int>(asked.text.size()) - 1},
              [](std::size_t, const float*) {});
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

struct estimate {
  double mean = 0, error = 0;
};
estimate mean_of(const std::vector<double>& values) {
  estimate found;
  const double n = static_cast<double>(values.size());
  for (const double x : values) found.mean += x / n;
  for (const double x : values) found.error += (x - found.mean) * (x - found.mean);
  found.error = n > 1 ? std::sqrt(found.error / (n - 1) / n) : 0;
  return found;
}

/// The processor's name, as far as the system tells.
std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(std::min(line.find(':') + 2, line.size()));
  }
  return "unknown";
}

/// The file of results: written anew after each, so that a run that is stopped goes on where it was.
class results {
 public:
  results(const options& chosen, const std::string& model_name) : path_(chosen.out) {
    std::ifstream file(path_);
    if (file) all_ = json::parse(file);
    const json settings = {{"model", model_name},
                           {"tokens", chosen.length},
                           {"ubatch", chosen.ubatch},
                           {"threads", chosen.threads},
                           {"cache", "f16"}};
    if (all_.contains("settings") && all_["settings"] != settings) {
      throw std::invalid_argument(path_ + " holds results of other settings, " + all_["settings"].dump() +
                                  ": move it away");
    }
    all_["settings"] = settings;
    all_["machine"] = {{"processor", processor()}, {"cores", std::thread::hardware_concurrency()}};
  }
  json& of(const std::string& method) { return all_["methods"][method]; }
  const json& all() const { return all_; }
  void save() const {
    const std::string part = path_ + ".part";
    std::ofstream(part) << all_.dump(1) << '\n';
    if (std::rename(part.c_str(), path_.c_str()) != 0) throw std::runtime_error(path_ + " cannot be written");
  }

 private:
  std::string path_;
  json all_;
};

std::vector<double> column(const json& rows, const char* name) {
  std::vector<double> values;
  for (const json& row : rows) values.push_back(row.at(name));
  return values;
}

void print_table(const results& found) {
  const json& all = found.all().at("methods");
  const double length = found.all()["settings"]["tokens"];
  std::printf("%-26s %9s %9s %8s %19s %19s\n", "method", "tokens/s", "to first", "speedup", "perplexity, change",
              "facts found");
  const json* const first = all.contains("llama.cpp") ? &all["llama.cpp"] : nullptr;
  const json* const dense = all.contains("skim dense") ? &all["skim dense"] : first;
  std::vector<std::string> names;
  for (const method& each : methods) {
    if (all.contains(each.name)) names.push_back(each.name);
  }
  for (const auto& [name, rows] : all.items()) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  for (const std::string& name : names) {
    const json& rows = all[name];
    const double seconds = median(rows.value("seconds", std::vector<double>{}));
    const double base = first ? median(first->value("seconds", std::vector<double>{})) : 0;
    std::vector<double> change, found_share;
    const json none = json::array();
    const json& own = rows.contains("prompts") ? rows["prompts"] : none;
    const json& reference = dense && dense->contains("prompts") ? (*dense)["prompts"] : none;
    for (std::size_t i = 0; i < own.size() && i < reference.size(); ++i) {
      change.push_back(own[i].at("nll").get<double>() - reference[i].at("nll").get<double>());
    }
    for (const json& row : own) found_share.push_back(row.at("right").get<double>() / row.at("answers").get<double>());
    const estimate nll = mean_of(column(own, "nll")), more = mean_of(change), share = mean_of(found_share);
    std::printf("%-26s", name.c_str());
    if (seconds > 0)
      std::printf(" %9.1f %7.2f s", length / seconds, seconds);
    else
      std::printf(" %9s %9s", "-", "-");
    if (seconds > 0 && base > 0)
      std::printf(" %7.2fx", base / seconds);
    else
      std::printf(" %8s", "-");
    if (!own.empty()) {
      std::printf(" %8.3f", std::exp(nll.mean));
      if (change.empty())
        std::printf(" %12s", "-");
      else
        std::printf(" %+.2f%% ±%.2f", 100 * std::expm1(more.mean), 100 * more.error);
      std::printf(" %9.3f ±%.3f", share.mean, share.error);
    }
    std::printf("\n");
  }
}

void measure(const options& chosen) {
  std::ifstream file(chosen.text);
  if (!file) throw std::invalid_argument("--text " + chosen.text + " cannot be read");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  llama_log_set(
      [](ggml_log_level level, const char* line, void*) {
        if (level >= GGML_LOG_LEVEL_WARN) std::fputs(line, stderr);
      },
      nullptr);
  skim_backend = load_backend(chosen.backend);
  ggml_backend_load_all();
  llama_backend_init();
  const model_pointer model(llama_model_load_from_file(chosen.model.c_str(), llama_model_default_params()),
                            llama_model_free);
  if (!model) throw std::invalid_argument("--model " + chosen.model + " cannot be loaded");
  const llama_vocab* const vocab = llama_model_get_vocab(model.get());
  const tokens words = tokenised(vocab, text, false);
  char name[128];
  llama_model_desc(model.get(), name, sizeof name);
  results found(chosen, name);

  const std::vector<method> used = chosen.wanted.empty() ? methods : methods_of(chosen.wanted);
  for (const method& each : used) {
    if (const char* const problem = skim_backend.configure(each.setting.c_str())) throw std::invalid_argument(problem);
  }
  const int work = static_cast<int>(used.size()) * (chosen.prompts + chosen.repeats);
  int done = 0;
  const auto start = std::chrono::steady_clock::now();
  int fresh = 0;
  const auto show = [&](const std::string& what) {
    const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr, "%3d of %d: %s", done + 1, work, what.c_str());
    if (fresh > 0) std::fprintf(stderr, ", about %.0f min left", passed / fresh * (work - done) / 60);
    std::fputs("\n", stderr);
  };
  const auto turn = [&](const method& each, const char* list, int have, const std::string& what, const auto& run) {
    json& rows = found.of(each.name)[list];
    if (static_cast<int>(rows.size()) <= have) {
      show(each.name + ", " + what);
      skim_backend.configure(each.setting.c_str());
      skim_backend.watch(!each.evictor.empty());
      const context_pointer context = new_context(*model, chosen, each);
      rows.push_back(run(*context));
      found.save();
      ++fresh;
    }
    ++done;
  };
  for (int r = 0; r < chosen.repeats; ++r) {
    const prompt asked = make_prompt(vocab, words, chosen.length, 0);
    for (const method& each : used) {
      turn(each, "seconds", r, "timed " + std::to_string(r + 1),
           [&](llama_context& context) { return seconds_of(context, asked, chosen.ubatch, each.evictor); });
    }
  }
  for (int i = 0; i < chosen.prompts; ++i) {
    const prompt asked = make_prompt(vocab, words, chosen.length, i);
    for (const method& each : used) {
      turn(each, "prompts", i, "prompt " + std::to_string(i + 1), [&](llama_context& context) {
        return quality(context, llama_vocab_n_tokens(vocab), asked, chosen.ubatch, each.evictor);
      });
    }
  }
  std::printf(
      "%s, prompts of %d tokens, ubatch %d, %d threads; perplexity of the text's second half, change against skim "
      "dense\n\n",
      name, chosen.length, chosen.ubatch, chosen.threads);
  print_table(found);
  std::printf("\n%s\n", chosen.out.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  options chosen;
  CLI::App app("Prefill of a real model in llama.cpp: its own attention, skim's, QUOKA's");
  app.add_option("--model", chosen.model, "A .gguf")->required()->check(CLI::ExistingFile);
  app.add_option("--backend", chosen.backend, "libggml-skim.so")->required()->check(CLI::ExistingFile);
  app.add_option("--text", chosen.text, "Prose, at least as long as a prompt")->required()->check(CLI::ExistingFile);
  app.add_option("--out", chosen.out, "Results, which a second run goes on with")->required();
  app.add_option("--context", chosen.length, "Tokens of a prompt")
      ->check(CLI::Range(512, 1 << 20))
      ->capture_default_str();
  app.add_option("--prompts", chosen.prompts, "Prompts that quality is measured on")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--repeats", chosen.repeats, "Timed runs of each method")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  app.add_option("--ubatch", chosen.ubatch, "Tokens of a chunk")->check(CLI::Range(1, 8192))->capture_default_str();
  app.add_option("--threads", chosen.threads, "Threads")->check(CLI::Range(1, 512))->capture_default_str();
  std::string names;
  for (const method& each : methods) names += (names.empty() ? "'" : ", '") + each.name + "'";
  app.add_option("--method", chosen.wanted,
                 "Only these: of " + names + "; or what SKIM_QUOKA takes, as budget=1024,queries=128");
  CLI11_PARSE(app, argc, argv);
  try {
    measure(chosen);
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "error: %s\n", problem.what());
    return 1;
  }
}
