// The part of LibTorch that nibble uses: tensors, operators and autograd. Not torch/all.h, which
// doubles the time and memory of every file that includes it.
#pragma once

#include <torch/autograd.h>
#include <torch/types.h>
