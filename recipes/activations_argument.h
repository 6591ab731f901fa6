// --activations: whose rounding of activations a measurement sees.
#pragma once

#include <string>

#include "model/activation_rounding.h"
#include "recipes/arguments.h"

namespace nibble {

inline void add_activations_option(cxxopts::Options& options) {
  options.add_options()(
      "activations",
      "round activations as llama_cpu or llama_cuda does for the weights' types; none: not at all",
      cxxopts::value<std::string>()->default_value("none"), "A");
}

inline ActivationBackend activations_argument(const cxxopts::ParseResult& arguments) {
  return parse_activation_backend(arguments["activations"].as<std::string>());
}

}  // namespace nibble
