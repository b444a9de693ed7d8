// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace needle {

/// A text in Unicode's form NFC. Bytes that are no UTF-8 stay as they are.
std::string normal_form(std::string_view text);

}  // namespace needle
