# SPDX-License-Identifier: Apache-2.0
# Headers, the CMake package and skim.pc. Nothing depends on the architecture: all of it goes below include and share.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/skim)

install(DIRECTORY include/skim DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
install(TARGETS skim EXPORT skim-targets INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT skim-targets NAMESPACE skim:: DESTINATION ${package_dir})
# The build tree is a package too, for what is used from where it was built: skim_DIR is this project's binary directory.
export(EXPORT skim-targets NAMESPACE skim:: FILE ${PROJECT_BINARY_DIR}/skim-targets.cmake)
configure_file(cmake/skim-dependencies.cmake ${PROJECT_BINARY_DIR} COPYONLY)
configure_file(cmake/skim-dispatch.cmake ${PROJECT_BINARY_DIR} COPYONLY)

configure_package_config_file(cmake/skim-config.cmake.in ${PROJECT_BINARY_DIR}/skim-config.cmake
                              INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO
                              NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/skim-config-version.cmake
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/skim-config.cmake ${PROJECT_BINARY_DIR}/skim-config-version.cmake
              cmake/skim-dependencies.cmake cmake/skim-dispatch.cmake
        DESTINATION ${package_dir})

# Relative to skim.pc itself, so that the installed tree can be moved.
file(RELATIVE_PATH pc_to_prefix /${CMAKE_INSTALL_DATADIR}/pkgconfig /)
configure_file(cmake/skim.pc.in ${PROJECT_BINARY_DIR}/skim.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/skim.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
