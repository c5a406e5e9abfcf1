"""Writes cuda/attention/wgmma.h: the instruction's wrappers, which name each of their registers.

python tools/generate_wgmma.py | clang-format > cuda/attention/wgmma.h
"""

from __future__ import annotations

WIDTHS = (32, 64, 128)  # of B, in columns
TYPES = {"Float16": "f16", "BFloat16": "bf16"}

HEAD = """\
// Written by tools/generate_wgmma.py; not to be edited. A warpgroup's product of 64 rows with {widths} columns, 16
// deep: d (+)= a b. The accumulators are the registers kFirst and on of d. B, and A where it is in shared memory, are
// given by descriptors; kTransposed: the operand's depth is its rows in memory, not its columns.
#pragma once

#include <cstdint>
#include <type_traits>

#include "math/lowp.h"

namespace fusestep::cuda {{
"""


def names(count: int, first: int = 0) -> str:
    return ", ".join(f"%{i}" for i in range(first, first + count))


def wrapper(width: int, a_in_registers: bool) -> str:
    count = width // 2
    a = [f"{{{names(4, count)}}}"] if a_in_registers else [f"%{count}"]
    next_operand = count + (4 if a_in_registers else 1)
    b, accumulate, first_transpose = next_operand, next_operand + 1, next_operand + 2
    transposes = 1 if a_in_registers else 2
    flags = ["p", "1", "1", *(f"%{first_transpose + i}" for i in range(transposes))]
    outputs = ", ".join(f'"+f"(d[kFirst + {i}])' for i in range(count))
    a_inputs = [f'"r"(a[{i}])' for i in range(4)] if a_in_registers else ['"l"(a)']
    template = "int kFirst, class S, bool kTransposedB, int kCount"
    a_type = "const std::uint32_t* a" if a_in_registers else "std::uint64_t a"
    transposed_inputs = ['"n"(int(kTransposedB))']
    if not a_in_registers:
        template = "int kFirst, class S, bool kTransposedA, bool kTransposedB, int kCount"
        transposed_inputs.insert(0, '"n"(int(kTransposedA))')
    inputs = ", ".join([*a_inputs, '"l"(b)', '"r"(accumulate)', *transposed_inputs])
    name = f"wgmma_{'registers' if a_in_registers else 'shared'}_{width}"
    lines = [
        f"template <{template}>",
        f"__device__ __forceinline__ void {name}(float (&d)[kCount], {a_type}, std::uint64_t b, int accumulate) {{",
    ]
    for i, (type_name, suffix) in enumerate(TYPES.items()):
        test = f"  if constexpr (std::is_same_v<S, {type_name}>) {{" if i == 0 else "  } else {"
        instruction = f"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.{suffix}.{suffix}"
        lines += [
            test,
            f'    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{accumulate}, 0;\\n"',
            f'                 "{instruction} {{{names(count)}}}, {a[0]}, %{b}, {", ".join(flags)};\\n}}\\n"',
            f"                 : {outputs}",
            f"                 : {inputs});",
        ]
    lines += ["  }", "}", ""]
    return "\n".join(lines)


def main() -> None:
    print(HEAD.format(widths=", ".join(map(str, WIDTHS[:-1])) + f" or {WIDTHS[-1]}"))
    for width in WIDTHS:
        for a_in_registers in (False, True):
            print(wrapper(width, a_in_registers))
    print("}  // namespace fusestep::cuda")


if __name__ == "__main__":
    main()
