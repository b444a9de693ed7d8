// SPDX-License-Identifier: Apache-2.0
/// \file Everything for the CPU but oneTBB, Eigen, JSON and GoogleTest, which have headers of their own.
#pragma once

#include <skim/cpu/append.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/attention_importance.hpp>
#include <skim/cpu/bounded_cache.hpp>
#include <skim/cpu/caote.hpp>
#include <skim/cpu/eviction.hpp>
#include <skim/cpu/fastforward.hpp>
#include <skim/cpu/ffn.hpp>
#include <skim/cpu/h2o.hpp>
#include <skim/cpu/keydiff.hpp>
#include <skim/cpu/oracle.hpp>
#include <skim/cpu/quoka.hpp>
#include <skim/cpu/random_neurons.hpp>
#include <skim/cpu/random_tokens.hpp>
#include <skim/cpu/sink_window.hpp>
#include <skim/cpu/snapkv.hpp>
#include <skim/cpu/tova.hpp>
#include <skim/version.hpp>
