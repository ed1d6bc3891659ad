/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#ifndef TWO_HPP
#define TWO_HPP

#include <vhost_user_frontend.hpp>

/* Whether the other translation unit has the same category, and the same code for the
   same mistake. */
bool two_agrees(const std::error_code &code);

#endif
