// SPDX-License-Identifier: Apache-2.0
#include "calibration_file.hpp"

#include "error.hpp"
#include "unnamed_file.hpp"

#include <skim/interop/fastforward_file.hpp>

#include <nlohmann/json.hpp>

namespace needle {
namespace {

using skim::calibrate::layer_report;
using skim::calibrate::selection_report;

/// The numbers of a report: both ways from one list.
template <class Report, class Number>
void each_number(Report& of, const Number& number) {
  for (auto* const each : {&of.oracle, &of.predictor, &of.calibrated_set}) {
    number(each->recall);
    number(each->captured);
    number(each->error);
    number(each->compensated_error);
  }
  number(of.training_blocks);
  number(of.held_out_blocks);
}

nlohmann::json to_json(const std::vector<layer_report>& reports) {
  nlohmann::json all = nlohmann::json::array();
  for (const layer_report& report : reports) {
    each_number(report, [&all](const auto& value) { all.push_back(value); });
  }
  return all;
}

std::vector<layer_report> reports_in(const nlohmann::json& all, std::size_t layers) {
  std::vector<layer_report> reports(layers);
  std::size_t next = 0;
  for (layer_report& report : reports) {
    each_number(report, [&](auto& value) { value = all.at(next++); });
  }
  return reports;
}

const std::string& entry(const skim::safetensors::file& file, const char* name) {
  const std::string* const text = file.metadata(name);
  if (!text) throw error(std::string("there is no '") + name + "'");
  return *text;
}

calibration read_part(const std::filesystem::path& part, const model_config& config, const nlohmann::json& settings) {
  const skim::safetensors::file file = skim::safetensors::file::read(part);
  if (!file.ok()) throw error(file.error());
  const nlohmann::json theirs = nlohmann::json::parse(entry(file, "settings"));
  if (theirs != settings) throw error("its settings are " + theirs.dump());
  const std::int64_t layers = nlohmann::json::parse(entry(file, "layers"));
  skim::loaded_fastforward loaded = skim::load_fastforward(file, {layers, config.d, config.f, config.activation});
  if (!loaded.ok()) throw error(loaded.error);
  loaded.model.importance = nlohmann::json::parse(entry(file, "importance")).get<std::vector<float>>();
  return {std::move(loaded.model),
          reports_in(nlohmann::json::parse(entry(file, "reports")), static_cast<std::size_t>(layers))};
}

}  // namespace

void save_part(const std::filesystem::path& part, const calibration& so_far, const nlohmann::json& settings) {
  skim::calibrate::fitted_model model = so_far.model;
  const std::vector<float> importance = std::move(model.importance);  // of layers that are not there yet, too
  model.importance.clear();
  skim::safetensors::writer file = skim::fastforward_writer(model, skim::element::bf16);
  file.metadata["settings"] = settings.dump();
  file.metadata["layers"] = std::to_string(model.layers.size());
  file.metadata["reports"] = to_json(so_far.layers).dump();
  file.metadata["importance"] = nlohmann::json(importance).dump();
  replace_file(part, [&file](const std::filesystem::path& to) { return file.write(to); });
}

calibration part_in(const std::filesystem::path& part, const model_config& config, const nlohmann::json& settings) {
  std::error_code code;
  if (!std::filesystem::exists(part, code)) return {};
  if (std::filesystem::file_size(part, code) == 0) return {};  // a process was killed as it tried whether it can write
  const auto refuse = [&](const std::string& why) {
    throw error(part.string() + ": holds no beginning of this calibration: " + why +
                "; go on with those settings, or remove the file");
  };
  try {
    return read_part(part, config, settings);
  } catch (const error& problem) {
    refuse(problem.what());
  } catch (const nlohmann::json::exception& problem) {
    refuse(problem.what());
  }
  return {};
}

}  // namespace needle
