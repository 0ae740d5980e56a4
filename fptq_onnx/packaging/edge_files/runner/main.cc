// fptq_run: goes on from token ids with the most likely token each time.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "decoder.h"

namespace {

constexpr const char* kUsage =
    "usage: fptq_run --onnxruntime LIB [--model DIR] [--tokens N] [--threads N] [--portable]\n"
    "                [--ignore-end] TOKEN...\n"
    "  --onnxruntime LIB  libonnxruntime.so, as new as README.md says (or the variable ONNXRUNTIME_LIB)\n"
    "  --model DIR        folder with decoder.txt (model)\n"
    "  --tokens N         how many to write at most (32)\n"
    "  --threads N        0 for ONNX Runtime's choice (0), at most 4 for each CPU\n"
    "  --portable         the graph that needs no library of ours\n"
    "  --ignore-end       go on after the token that ends a text\n";

struct Options {
  std::string runtime, model = "model";
  int64_t tokens = 32, threads = 0;
  bool portable = false, ignore_end = false;
  std::vector<int64_t> prompt;
};

// A command line that means nothing.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Nobody reads any more (head, less): no reason to complain.
struct ReaderLeft {};

int64_t number(const std::string& what, const std::string& text) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 0 || value > 1000000000) {
    throw UsageError(what + " must be a whole number from 0 to 1000000000, got " + text);
  }
  return value;
}

// More threads than CPUs only wait for each other, and each takes memory.
void check_threads(int64_t threads) {
  const int64_t cpus = std::max<int64_t>(1, sysconf(_SC_NPROCESSORS_ONLN));
  if (threads > 4 * cpus) {
    throw UsageError("--threads must be from 0 to " + std::to_string(4 * cpus) +
                     " (4 for each of the " + std::to_string(cpus) + " CPUs here), got " +
                     std::to_string(threads));
  }
}

Options parse(int count, char** words) {
  Options options;
  const char* variable = std::getenv("ONNXRUNTIME_LIB");
  if (variable != nullptr) options.runtime = variable;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&]() -> std::string {
      if (++i >= count) throw UsageError(word + " needs a value");
      return words[i];
    };
    if (word == "--onnxruntime") {
      options.runtime = value();
    } else if (word == "--model") {
      options.model = value();
    } else if (word == "--tokens") {
      options.tokens = number(word, value());
    } else if (word == "--threads") {
      options.threads = number(word, value());
    } else if (word == "--portable") {
      options.portable = true;
    } else if (word == "--ignore-end") {
      options.ignore_end = true;
    } else if (word.size() > 1 && word[0] == '-' && (word[1] < '0' || word[1] > '9')) {
      throw UsageError("unknown option " + word);
    } else {
      options.prompt.push_back(number("a token", word));
    }
  }
  if (options.runtime.empty()) throw UsageError("give --onnxruntime LIB");
  if (options.prompt.empty()) throw UsageError("give at least one token");
  if (options.tokens < 1) throw UsageError("--tokens must be at least 1");
  check_threads(options.threads);
  return options;
}

// The graph with our ops, or where they cannot be used here the portable one.
std::unique_ptr<Decoder> open(const Options& options, const Description& about, int64_t length) {
  const int threads = static_cast<int>(options.threads);
  if (options.portable && about.portable.empty()) {
    throw std::runtime_error("this package has no portable graph");
  }
  try {
    return std::make_unique<Decoder>(options.runtime, about, options.portable, threads, length);
  } catch (const std::runtime_error& error) {
    if (options.portable || about.portable.empty()) throw;
    std::fprintf(stderr, "fptq_run: %s\nfptq_run: going on with the portable graph\n",
                 error.what());
    return std::make_unique<Decoder>(options.runtime, about, true, threads, length);
  }
}

void check_prompt(const std::vector<int64_t>& prompt, const Description& about) {
  for (const int64_t token : prompt) {
    if (about.vocabulary <= 0 || token < about.vocabulary) continue;
    const std::string id = std::to_string(token);
    const auto named = about.beyond.find(token);
    const bool known = named != about.beyond.end();
    throw std::runtime_error(
        "the token " + (known ? "'" + named->second + "' (id " + id + ")" : id) +
        " is beyond the model's " + std::to_string(about.vocabulary) + " tokens" +
        (known ? ", though the tokenizer has it: take it out of the text"
               : ": use the model's own tokenizer"));
  }
}

void write(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw ReaderLeft();
  throw std::runtime_error(std::string("standard output: ") + std::strerror(errno));
}

void generate(const Options& options) {
  // Before anything is opened, which would take its place.
  if (fcntl(STDOUT_FILENO, F_GETFD) == -1) throw std::runtime_error("standard output is closed");
  const Description about = read_description(options.model);
  check_prompt(options.prompt, about);
  const auto prompt = static_cast<int64_t>(options.prompt.size());
  int64_t wanted = options.tokens;
  if (about.context_length > 0) wanted = std::min(wanted, about.context_length - prompt);
  if (wanted < 1) throw std::runtime_error("the prompt fills the model's context");
  const std::unique_ptr<Decoder> decoder = open(options, about, prompt + wanted);
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  int64_t token = decoder->feed(options.prompt);
  const auto fed = Clock::now();
  int64_t written = 0;
  const auto is_end = [&](int64_t id) {
    return !options.ignore_end && std::count(about.end_tokens.begin(), about.end_tokens.end(), id);
  };
  while (!is_end(token)) {
    write((written == 0 ? "" : " ") + std::to_string(token));
    if (++written == wanted) break;
    token = decoder->feed({token});
  }
  write("\n");
  const std::chrono::duration<double> first = fed - start, rest = Clock::now() - fed;
  std::fprintf(stderr, "%lld tokens read in %.3f s, %lld written, %.1f tokens/s\n",
               static_cast<long long>(prompt), first.count(), static_cast<long long>(written),
               written > 1 ? static_cast<double>(written - 1) / rest.count() : 0.0);
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::strcmp(words[1], "--help") == 0) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  setenv("FPTQ_HUGE_PAGES", "1", 0);  // unless it says otherwise
  try {
    generate(parse(count, words));
  } catch (const ReaderLeft&) {
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "fptq_run: error: %s; see fptq_run --help\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fptq_run: error: %s\n", error.what());
    return 2;
  }
  return 0;
}
