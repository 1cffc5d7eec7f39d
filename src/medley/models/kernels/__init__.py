"""Decoding at the speed at which memory is read: C for products of few tokens and for whole layers over them, compiled
for the processor it runs on by the compiler that is there. Optional; torch computes where there is none.
"""
