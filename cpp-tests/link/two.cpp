/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "two.hpp"

bool two_agrees(const std::error_code &code)
{
    vuf::client none;
    return code == none.set_owner().error() && code == vuf::error_class::local &&
           code.category() == vuf::category();
}
