# SPDX-License-Identifier: Apache-2.0
# cmake -DRUN=... -DDIRECT=... -DLEVEL=... [-DPROCESSOR=... -DEMULATOR=...] -P dispatch_bits.cmake: the library for any
# processor gives the bits of the program that is compiled for LEVEL. On an emulated PROCESSOR it has to choose LEVEL by
# itself; else LEVEL is asked for, and a processor that lacks it says so.
if(PROCESSOR)
  set(emulated ${EMULATOR} -cpu ${PROCESSOR})
  set(asked "")
else()
  set(emulated "")
  set(asked ${LEVEL})
endif()
execute_process(COMMAND ${emulated} ${RUN} ${asked} OUTPUT_VARIABLE dispatched ERROR_VARIABLE said RESULT_VARIABLE code
                OUTPUT_STRIP_TRAILING_WHITESPACE)
if(code EQUAL 2 AND NOT PROCESSOR)
  message("skipped: ${dispatched}")
  return()
endif()
execute_process(COMMAND ${emulated} ${DIRECT} OUTPUT_VARIABLE direct OUTPUT_STRIP_TRAILING_WHITESPACE)
message("${PROCESSOR} ${dispatched}, compiled for it ${direct}")
if(NOT direct MATCHES "^[0-9a-f]+$" OR NOT dispatched STREQUAL "${LEVEL} ${direct}")
  message(FATAL_ERROR "expected '${LEVEL} ${direct}', came '${dispatched}' (exit ${code}) ${said}")
endif()
