"""Adapters to AMD's aiter: each one checks the whole contract of the function behind it before
calling it.

aiter's functions abort the process on a bad argument, reinterpret the bits of a dtype that they did
not expect, or read past a row's end. Nothing here lets a call through that could do so:

    installation    what is installed under the name aiter, what it can do, why it cannot be used
    contract        the checks that the adapters share, and the error of a call that was held back
    <operator>      refusal(...)        why aiter may not take this call, or None; fake tensors do
                    numerics_note(...)  where aiter rounds otherwise than the graph, or None
                    <operator>(...)     the call: functional, contiguous fresh outputs

aiter is imported when `installation.find()` is first asked, never when this package is.
"""
