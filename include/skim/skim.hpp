// SPDX-License-Identifier: Apache-2.0
/// \file Everything for the CPU but oneTBB, Eigen, JSON and GoogleTest, which have headers of their own.
#pragma once

#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/quoka.hpp>
#include <skim/cpu/sink_window.hpp>
#include <skim/version.hpp>
