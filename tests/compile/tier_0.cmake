# SPDX-License-Identifier: Apache-2.0
# The headers of tier 0: those at the root and in these folders. The only list of the folders' names.
set(policy_folders selector evictor neuron_selector)
list(JOIN policy_folders | policies)
set(tier_0 "skim/([a-z_0-9]+|(${policies}|math|reference)/[a-z_0-9]+)\\.hpp")
# Those of cpu/ that users include: without kernel/ and simd/.
set(public_cpu "skim/cpu/((${policies})/)?[a-z_0-9]+\\.hpp")
