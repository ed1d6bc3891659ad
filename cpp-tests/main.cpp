/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "support.hpp"
