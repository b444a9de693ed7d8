// SPDX-License-Identifier: Apache-2.0
/// \file A calibration that was stopped, as a file: what is fitted so far, and with which settings.
#pragma once

#include "calibration.hpp"

#include <nlohmann/json_fwd.hpp>

namespace needle {

/// Writes it to FILE.part, in the place of what an earlier layer left there. Throws `error`.
void save_part(const std::filesystem::path& part, const calibration& so_far, const nlohmann::json& settings);

/// What such a file holds; nothing where there is none. Throws `error` where it is of other settings.
calibration part_in(const std::filesystem::path& part, const model_config& config, const nlohmann::json& settings);

}  // namespace needle
