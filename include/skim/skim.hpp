// SPDX-License-Identifier: Apache-2.0
/// \file Everything for the CPU but oneTBB, Eigen, JSON and GoogleTest, which have headers of their own, and
/// cpu/dispatch.hpp, which needs levels to link with.
#pragma once

#include <skim/buffer.hpp>
#include <skim/cpu/append.hpp>
#include <skim/cpu/attend.hpp>
#include <skim/cpu/attention.hpp>
#include <skim/cpu/attention_importance.hpp>
#include <skim/cpu/bounded_cache.hpp>
#include <skim/cpu/eviction.hpp>
#include <skim/cpu/evictor/caote.hpp>
#include <skim/cpu/evictor/h2o.hpp>
#include <skim/cpu/evictor/keydiff.hpp>
#include <skim/cpu/evictor/random_tokens.hpp>
#include <skim/cpu/evictor/snapkv.hpp>
#include <skim/cpu/evictor/tova.hpp>
#include <skim/cpu/features.hpp>
#include <skim/cpu/ffn.hpp>
#include <skim/cpu/linear.hpp>
#include <skim/cpu/neuron_selector/all_neurons.hpp>
#include <skim/cpu/neuron_selector/calibrated_set.hpp>
#include <skim/cpu/neuron_selector/fastforward.hpp>
#include <skim/cpu/neuron_selector/oracle.hpp>
#include <skim/cpu/neuron_selector/random_neurons.hpp>
#include <skim/cpu/neuron_selector/static_set.hpp>
#include <skim/cpu/selector/quoka.hpp>
#include <skim/evictor/standard.hpp>
#include <skim/neuron_selector/schedule.hpp>
#include <skim/selector/dense.hpp>
#include <skim/selector/sink_window.hpp>
#include <skim/team_executor.hpp>
#include <skim/version.hpp>
