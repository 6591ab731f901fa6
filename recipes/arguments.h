// A subcommand's command line: cxxopts with nibble's errors (exit status 2) and --help.
#pragma once

#include <cerrno>  // program_invocation_name
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cxxopts.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "io/model_cache.h"
#include "quant/format/device.h"

namespace nibble {

/// A flag that is known but not taken, and why.
struct RefusedFlag {
  const char* name;
  const char* reason;
};

/// Adds --help and parses. Nothing when help was asked for, which is then on stdout: the options of
/// the unnamed group (positional arguments belong in another, so that they are not listed as
/// options), then `examples`. Throws Error (usage) for an unknown option, a bad value, or an
/// argument too many.
inline std::optional<cxxopts::ParseResult> parse_arguments(cxxopts::Options& options, int argc,
                                                           char** argv,
                                                           const std::string& examples = "") {
  options.add_options()("h,help", "this text");
  try {
    cxxopts::ParseResult result = options.parse(argc, argv);
    if (result.count("help") > 0) {
      std::printf("%s%s", options.help({""}).c_str(), examples.c_str());
      return std::nullopt;
    }
    if (!result.unmatched().empty())
      fail_usage("argument '", result.unmatched().front(), "' is one too many");
    return result;
  } catch (const cxxopts::exceptions::exception& error) {
    fail_usage(error.what(), "; see nibble ", argv[0], " --help");
  }
}

/// Adds --device; `does`: what happens there, for --help.
inline void add_device_option(cxxopts::Options& options, const std::string& does) {
  options.add_options()("device",
                        "where it " + does + ": cpu, cuda (the first GPU), cuda:N or auto",
                        cxxopts::value<std::string>()->default_value("cpu"), "D");
}

/// Its value. Throws Error (usage) for a device that is not there, saying why.
inline Device device_argument(const cxxopts::ParseResult& arguments) {
  return parse_device(arguments["device"].as<std::string>());
}

/// A positional argument that must be there; `shown` is its name in messages.
inline std::string required(const cxxopts::ParseResult& arguments, const std::string& name,
                            const std::string& shown) {
  if (arguments.count(name) == 0) fail_usage("no ", shown, " given; see --help");
  return arguments[name].as<std::string>();
}

/// The same of a model: a path, or a repository that some program has downloaded.
inline std::string model_argument(const cxxopts::ParseResult& arguments, const std::string& name,
                                  const std::string& shown) {
  return find_model(required(arguments, name, shown));
}

/// An argument as a shell takes it.
inline std::string quoted(const std::string& argument) {
  const bool plain =
      !argument.empty() &&
      argument.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%") ==
          std::string::npos;
  if (plain) return argument;
  std::string text = "'";
  for (const char c : argument) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

/// The command line that was given, with --resume: what goes on with a stopped run.
inline std::string resume_command(int argc, char** argv) {
  std::string command = quoted(program_invocation_name);
  bool resumes = false;
  for (int i = 0; i < argc; ++i) {
    command += ' ' + quoted(argv[i]);
    resumes |= std::string(argv[i]) == "--resume";
  }
  return resumes ? command : command + " --resume";
}

/// An option's text, "" where it was not given.
inline std::string text_or_empty(const cxxopts::ParseResult& arguments, const std::string& name) {
  return arguments.count(name) > 0 ? arguments[name].as<std::string>() : "";
}

/// A whole text as a number, or nothing.
template <class T>
std::optional<T> parse_number(std::string_view text) {
  T number;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// A number that an option was given. (cxxopts takes what begins like one.)
inline double number_argument(const cxxopts::ParseResult& arguments, const std::string& name) {
  const std::string text = arguments[name].as<std::string>();
  const std::optional<double> number = parse_number<double>(text);
  if (!number || !std::isfinite(*number))
    fail_usage("--", name, ": wants a number, found '", text, "'");
  return *number;
}

/// A number with a decimal unit, as sizes are printed: "90M" is 90,000,000. name: the option's.
inline int64_t parse_size(const std::string& text, const std::string& name) {
  size_t used = 0;
  double size = -1;
  try {
    size = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = text.substr(used);
  const double factor = unit.empty() || unit == "B"   ? 1
                        : unit == "K" || unit == "kB" ? 1e3
                        : unit == "M" || unit == "MB" ? 1e6
                        : unit == "G" || unit == "GB" ? 1e9
                                                      : 0;
  const double bytes = size * factor;
  if (used == 0 || !(bytes >= 1 && bytes < 1e18))
    fail_usage("--", name, ": wants a size as 90M or 1.5G, found '", text, "'");
  return static_cast<int64_t>(bytes);
}

/// An option's size in bytes.
inline int64_t size_argument(const cxxopts::ParseResult& arguments, const std::string& name) {
  return parse_size(arguments[name].as<std::string>(), name);
}

/// Adds --split-max-size, as llama.cpp's converter has it.
inline void add_part_size_option(cxxopts::Options& options) {
  options.add_options()("split-max-size",
                        "write OUT-00001-of-0000N.gguf, ..., each of so many bytes at most",
                        cxxopts::value<std::string>(), "SIZE");
}

/// Its value, 0 where it was not given.
inline int64_t part_size_argument(const cxxopts::ParseResult& arguments) {
  return arguments.count("split-max-size") > 0 ? size_argument(arguments, "split-max-size") : 0;
}

}  // namespace nibble
