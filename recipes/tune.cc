// nibble tune: which settings train best, by runs of several seeds that are compared pair by pair.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "base/stop_signal.h"
#include "configs/config.h"
#include "io/atomic_file.h"
#include "io/input_files.h"
#include "io/line_file.h"
#include "recipes/arguments.h"
#include "recipes/config_arguments.h"
#include "recipes/recipe.h"
#include "training/trainer.h"

extern char** environ;

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kExamples =
    "\nEvery combination of the values of all --try is a trial. Each seed trains all trials on the "
    "same text in the same\n"
    "order and compares their held-out losses, so differences are taken seed by seed; the interval "
    "is Student's, 95 %.\n"
    "A trial that is 1.3 times as far from zero as the best at a third of its steps or later is "
    "stopped, one that was so\n"
    "at its end, or is worse beyond the interval, gets no further seed. What was found is kept "
    "line by line in\n"
    "OUTPUT/trials.jsonl: the same command goes on where it was stopped. OUTPUT/best.yaml is the "
    "winner's configuration.\n"
    "\nexamples:\n"
    "  nibble tune config.yaml --try optimizer.learning_rate=1e-3,4e-3 --seeds 3\n"
    "  nibble tune config.yaml --methods relative,lsq+ --try "
    "optimizer.scale_learning_rate=3e-4,1e-3 --set max_tokens=50000\n";

/// How much worse than the best ends a trial.
constexpr double kFarBehind = 1.3;
/// The share of its steps before which none is stopped.
constexpr double kEarliest = 1.0 / 3;
constexpr int64_t kMaxSeeds = 10;
constexpr const char* kStopNotice = "stopping: the training writes a checkpoint first\n";

struct Trial {
  std::vector<ConfigOverride> settings;
  std::map<int64_t, double> losses;  // by seed, of the runs that came to their end
  std::string left;                  // why it gets no further seed, or ""

  std::string name() const {
    std::string text;
    for (const ConfigOverride& setting : settings) text += (text.empty() ? "" : ", ") + setting;
    return text;
  }
};

struct Tuning {
  std::string config_path, output;
  std::vector<ConfigOverride> base;  // --set, for all trials
  std::vector<Trial> trials;
  int64_t seeds = 3, steps = 0;

  /// What is set for a trial, the last of a key winning.
  std::vector<ConfigOverride> settings_of(const Trial& trial) const {
    std::vector<ConfigOverride> settings = base;
    settings.insert(settings.end(), trial.settings.begin(), trial.settings.end());
    return settings;
  }
  std::string run_folder(const Trial& trial, int64_t seed) const {
    std::string folder = trial.name();
    for (char& c : folder)
      if (c == '/' || c == ' ' || c == ',') c = '_';
    return concat(output, '/', folder, "-seed", seed);
  }
};

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

/// Of a trial's losses to another's, over the seeds that both have.
struct Difference {
  double mean = 0;
  std::optional<double> margin;  // of 95 %; nothing for a single seed
};

Difference difference(const Trial& trial, const Trial& other) {
  // Student's t for 95 % on both sides, by degrees of freedom.
  constexpr double kStudent[kMaxSeeds] = {0,     12.706, 4.303, 3.182, 2.776,
                                          2.571, 2.447,  2.365, 2.306, 2.262};
  std::vector<double> differences;
  for (const auto& [seed, loss] : trial.losses)
    if (const auto found = other.losses.find(seed); found != other.losses.end())
      differences.push_back(loss - found->second);
  if (differences.empty()) return {NAN, {}};
  Difference result{mean(differences), {}};
  const size_t count = differences.size();
  if (count < 2) return result;
  double squares = 0;
  for (const double each : differences) squares += (each - result.mean) * (each - result.mean);
  const auto n = static_cast<double>(count);
  result.margin = kStudent[count - 1] * std::sqrt(squares / (n - 1) / n);
  return result;
}

/// Over its seeds; NaN where it has none.
double mean_loss(const Trial& trial) {
  std::vector<double> losses;
  for (const auto& [seed, loss] : trial.losses) losses.push_back(loss);
  return losses.empty() ? NAN : mean(losses);
}

/// The lowest mean loss among those that have run with every seed so far.
const Trial& best_trial(const std::vector<Trial>& trials) {
  size_t most = 0;
  for (const Trial& trial : trials) most = std::max(most, trial.losses.size());
  const Trial* best = nullptr;
  double lowest = INFINITY;
  for (const Trial& trial : trials) {
    if (trial.losses.size() < most || trial.losses.empty()) continue;
    if (mean_loss(trial) < lowest) {
      lowest = mean_loss(trial);
      best = &trial;
    }
  }
  check(best, "no trial came to its end");
  return *best;
}

void drop_the_worse(std::vector<Trial>& trials) {
  const Trial& best = best_trial(trials);
  for (Trial& trial : trials) {
    if (!trial.left.empty() || &trial == &best) continue;
    const Difference to_best = difference(trial, best);
    if (to_best.margin && to_best.mean > *to_best.margin)
      trial.left = "worse than the best, beyond the interval";
    const auto first = trial.losses.begin();
    if (trial.losses.size() == 1 && first->second > kFarBehind * best.losses.at(first->first))
      trial.left = "far behind the best";
  }
}

std::vector<StepMetrics> evaluated(const std::string& folder) {
  std::vector<StepMetrics> all = read_metrics(folder);
  std::erase_if(all, [](const StepMetrics& m) { return m.step == 0 || m.held_out_loss < 0; });
  return all;
}

/// Whether a run's last evaluation is so much worse than that of another at the same step that it
/// is not worth its end.
bool is_hopeless(const std::string& folder, const std::vector<StepMetrics>& best, int64_t steps) {
  if (best.empty() || !fs::exists(folder + "/metrics.jsonl")) return false;
  const std::vector<StepMetrics> own = evaluated(folder);
  if (own.empty() || static_cast<double>(own.back().step) < kEarliest * static_cast<double>(steps))
    return false;
  const auto same = std::find_if(best.begin(), best.end(),
                                 [&](const StepMetrics& m) { return m.step == own.back().step; });
  return same != best.end() && own.back().held_out_loss > kFarBehind * same->held_out_loss;
}

pid_t start_training(const Tuning& tuning, const Trial& trial, int64_t seed) {
  const std::string folder = tuning.run_folder(trial, seed), log = folder + ".log";
  std::vector<std::string> words = {"nibble", "train", tuning.config_path, "--json"};
  for (const ConfigOverride& setting : tuning.settings_of(trial))
    words.insert(words.end(), {"--set", setting});
  words.insert(words.end(), {"--set", concat("seed=", seed), "--set", "output=" + folder});
  if (fs::exists(folder + "/config.yaml")) words.emplace_back("--resume");
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                   0644);
  posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
  // In a group of its own, so that Ctrl-C comes to it once, from here.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  pid_t child = 0;
  const int problem =
      ::posix_spawn(&child, "/proc/self/exe", &files, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  check(problem == 0, "cannot start a training: ", std::strerror(problem));
  return child;
}

/// The best held-out loss, or nothing where the run was stopped. Throws Error, naming its log,
/// where it failed.
std::optional<double> run_trial(const Tuning& tuning, const Trial& trial, int64_t seed,
                                const std::vector<StepMetrics>& best) {
  const std::string folder = tuning.run_folder(trial, seed);
  const StopRequest stop(kStopNotice);
  const pid_t child = start_training(tuning, trial, seed);
  bool hopeless = false, told = false;
  int status = 0;
  for (pid_t ended = 0; ended == 0;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ended = ::waitpid(child, &status, WNOHANG);
    check(ended >= 0 || errno == EINTR, "cannot wait for a training: ", std::strerror(errno));
    if (ended != 0 || told) continue;
    hopeless = is_hopeless(folder, best, tuning.steps);
    told = hopeless || stop.requested();
    if (told) ::kill(child, SIGTERM);
  }
  check(!stop.requested(), "stopped; the same command goes on");
  if (hopeless) return std::nullopt;
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, trial.name(), ", seed ", seed,
        ": the training failed; see ", folder, ".log");
  double lowest = INFINITY;
  for (const StepMetrics& metrics : evaluated(folder))
    lowest = std::min(lowest, metrics.held_out_loss);
  check(std::isfinite(lowest), trial.name(), ", seed ", seed, ": the run has no held-out loss");
  return lowest;
}

/// What an earlier call found, after a first line with its configuration. Throws Error (usage)
/// where that is another one.
void read_found(Tuning& tuning, const std::string& path, const std::string& config) {
  if (!fs::exists(path)) return;
  for_each_row(read_file(path), [&](const Json& row, int64_t line) {
    if (line == 1 && row.value("config", "") != config)
      fail_usage(path, ": was made with another configuration; give another --output");
    if (line == 1) return;
    check(row.is_object() && row.contains("trial") && row.contains("seed"), path, ": line ", line,
          ": is no trial");
    for (Trial& trial : tuning.trials) {
      if (trial.name() != row["trial"]) continue;
      if (row.contains("loss") && row["loss"].is_number())
        trial.losses[row["seed"].get<int64_t>()] = row["loss"].get<double>();
      else
        trial.left = "stopped";
    }
  });
}

void run_all(Tuning& tuning) {
  const std::string path = tuning.output + "/trials.jsonl";
  create_folders(tuning.output);
  const std::string config = config_yaml(load_config(tuning.config_path, tuning.base));
  const bool is_new = !fs::exists(path);
  read_found(tuning, path, config);
  LineFile found(path);
  if (is_new) found.append(Json{{"config", config}}.dump());
  Progress bar("tuning", static_cast<int64_t>(tuning.trials.size()) * tuning.seeds, "trainings");
  int64_t done = 0;
  for (int64_t seed = 1; seed <= tuning.seeds; ++seed) {
    std::vector<StepMetrics> best;  // of this seed
    double lowest = INFINITY;
    for (Trial& trial : tuning.trials) {
      if (trial.left.empty() && !trial.losses.contains(seed)) {
        const auto loss = run_trial(tuning, trial, seed, best);
        found.append(
            Json{{"trial", trial.name()}, {"seed", seed}, {"loss", loss ? Json(*loss) : Json()}}
                .dump());
        if (loss)
          trial.losses[seed] = *loss;
        else
          trial.left = "stopped";
      }
      bar.update(++done, trial.name());
      const auto own = trial.losses.find(seed);
      if (own == trial.losses.end() || own->second >= lowest) continue;
      lowest = own->second;
      if (fs::exists(tuning.run_folder(trial, seed) + "/metrics.jsonl"))
        best = evaluated(tuning.run_folder(trial, seed));
    }
    drop_the_worse(tuning.trials);
  }
  bar.finish();
}

/// "key=a,b" as one setting for each value.
std::vector<ConfigOverride> parse_try(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    fail_usage("--try wants KEY=VALUE,VALUE, found '", text, "'");
  std::vector<ConfigOverride> settings;
  for (size_t at = equals + 1; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    if (comma == at) fail_usage("--try ", text, ": a value is empty");
    settings.push_back(text.substr(0, equals + 1) + text.substr(at, comma - at));
    at = comma + 1;
  }
  return settings;
}

std::vector<Trial> combinations(const std::vector<std::vector<ConfigOverride>>& tries) {
  std::vector<Trial> trials(1);
  for (const std::vector<ConfigOverride>& values : tries) {
    std::vector<Trial> longer;
    for (const Trial& trial : trials)
      for (const ConfigOverride& value : values) {
        longer.push_back(trial);
        longer.back().settings.push_back(value);
      }
    trials = std::move(longer);
  }
  return trials;
}

Tuning read_tuning(const cxxopts::ParseResult& arguments) {
  Tuning tuning;
  tuning.config_path = required(arguments, "config", "CONFIG.yaml");
  tuning.seeds = arguments["seeds"].as<int64_t>();
  if (tuning.seeds < 1 || tuning.seeds > kMaxSeeds)
    fail_usage("--seeds wants 1 to ", kMaxSeeds, ", found ", tuning.seeds);
  std::vector<std::vector<ConfigOverride>> tries;
  tuning.base = config_overrides(arguments);
  for (const cxxopts::KeyValue& argument : arguments.arguments()) {
    if (argument.key() == "try") tries.push_back(parse_try(argument.value()));
    if (argument.key() == "methods")
      tries.push_back(parse_try("quant.estimator=" + argument.value()));
  }
  if (tries.empty()) fail_usage("nothing to compare: give --try KEY=VALUE,VALUE or --methods");
  tuning.trials = combinations(tries);
  if (tuning.trials.size() < 2)
    fail_usage("nothing to compare: there is one trial; give more values");
  // Every mistake in a trial before the first one runs.
  for (const Trial& trial : tuning.trials) {
    const RunConfig config = load_config(tuning.config_path, tuning.settings_of(trial));
    if (config.train.data.held_out == 0)
      fail_usage("data.held_out is 0: trials are compared by their held-out losses");
    tuning.steps = config.train.max_tokens / config.train.batch_tokens;
    tuning.output = text_or_empty(arguments, "output");
    if (tuning.output.empty()) tuning.output = "runs/" + config.name + "-tune";
  }
  return tuning;
}

std::string write_best(const Tuning& tuning, const Trial& best) {
  const std::string path = tuning.output + "/best.yaml";
  write_file(path, config_yaml(load_config(tuning.config_path, tuning.settings_of(best))));
  return path;
}

void print_json(const Tuning& tuning, const Trial& best, const std::string& best_path) {
  Json json = {{"best", best.name()}, {"config", best_path}, {"trials", Json::array()}};
  for (const Trial& trial : tuning.trials) {
    const Difference to_best = difference(trial, best);
    Json row = {{"settings", trial.name()}, {"losses", Json::object()}};
    for (const auto& [seed, loss] : trial.losses) row["losses"][std::to_string(seed)] = loss;
    if (!trial.losses.empty()) row["mean"] = mean_loss(trial);
    if (std::isfinite(to_best.mean)) row["to_best"] = to_best.mean;
    if (to_best.margin) row["margin"] = *to_best.margin;
    if (!trial.left.empty()) row["left"] = trial.left;
    json["trials"].push_back(row);
  }
  std::printf("%s\n", json.dump(2).c_str());
}

void print_table(const Tuning& tuning, const Trial& best, const std::string& best_path) {
  size_t longest = 0;
  for (const Trial& trial : tuning.trials) longest = std::max(longest, trial.name().size());
  std::printf("  %-*s %10s %6s   to the best\n", static_cast<int>(longest), "trial", "held out",
              "seeds");
  for (const Trial& trial : tuning.trials) {
    const Difference to_best = difference(trial, best);
    std::printf("%c %-*s ", &trial == &best ? '>' : ' ', static_cast<int>(longest),
                trial.name().c_str());
    if (trial.losses.empty())
      std::printf("%10s %6s", "", "0");
    else
      std::printf("%10.5g %6zu", mean_loss(trial), trial.losses.size());
    if (&trial != &best && std::isfinite(to_best.mean)) std::printf("   %+.3g", to_best.mean);
    if (&trial != &best && to_best.margin) std::printf(" +- %.2g", *to_best.margin);
    std::printf("%s%s\n", trial.left.empty() ? "" : "   ", trial.left.c_str());
  }
  std::printf("\nbest: %s\nnibble run %s\n", best.name().c_str(), best_path.c_str());
}

}  // namespace

int run_tune(int argc, char** argv) {
  cxxopts::Options options(
      "nibble tune",
      "Which settings train best: short trainings of several seeds, compared pair by pair.");
  options.positional_help("CONFIG.yaml");
  options.add_options("arguments")("config", "", cxxopts::value<std::string>());
  options.add_options()("try", "values of one setting; several options: every combination",
                        cxxopts::value<std::string>(), "KEY=A,B");
  options.add_options()("methods", "values of quant.estimator", cxxopts::value<std::string>(),
                        "A,B");
  options.add_options()("seeds", "trainings of each trial, 1 to 10",
                        cxxopts::value<int64_t>()->default_value("3"), "N");
  options.add_options()("set", "a setting of all trials; may be repeated",
                        cxxopts::value<std::string>(), "KEY=VALUE");
  options.add_options()("output", "folder for the trials; by default runs/NAME-tune",
                        cxxopts::value<std::string>(), "DIR");
  options.add_options()("json",
                        "one JSON object: best, trials: [settings, losses, to_best, margin]");
  options.parse_positional({"config"});
  const auto arguments = parse_arguments(options, argc, argv, kExamples);
  if (!arguments) return 0;
  Tuning tuning = read_tuning(*arguments);
  run_all(tuning);
  const Trial& best = best_trial(tuning.trials);
  const std::string best_path = write_best(tuning, best);
  if (arguments->count("json") > 0)
    print_json(tuning, best, best_path);
  else
    print_table(tuning, best, best_path);
  return 0;
}

}  // namespace nibble
