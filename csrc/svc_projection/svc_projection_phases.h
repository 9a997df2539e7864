// Decides in which order matrices are measured, judged and rewritten, and in which arithmetic: all Gram matrices and
// all verdicts come before the first write. Compiled once per instruction set.

constexpr int kRounds = 24;         // of correction; one is enough but for 16-bit storage and values far outside
constexpr int64_t kTick = 1 << 15;  // operations in the unit that work is shared out by

template <class A>
struct Layer {
  const SvcMatrix* w = nullptr;
  SvcReport* report = nullptr;
  bool in_double = false;
  int attempts = 0;  // corrections to the bound that the certificate did not confirm
  Verdict verdict = Verdict::inside;
  Scratch gram;  // in double, whatever the arithmetic
  Clip<A> own;
  Clip<double> broad;  // where in_double
};

// Shares the units of several layers out by their cost: run(layer, begin, end).
template <class A, class Cost, class Run>
void share(const Parallel& parallel, const std::vector<Layer<A>*>& layers, const Cost& cost, const Run& run) {
  std::vector<std::pair<int64_t, int64_t>> parts;  // (units, ticks of one)
  int64_t ticks = 0;
  for (Layer<A>* layer : layers) {
    const auto [units, operations] = cost(*layer);
    parts.emplace_back(units, int64_t(operations / kTick) + 1);
    ticks += units * parts.back().second;
  }
  parallel(ticks, kTick, [&](int64_t begin, int64_t end) {
    int64_t before = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto [units, each] = parts[i];
      const auto unit_at = [&, each = each, units = units](int64_t tick) {  // units that start before `tick`
        return std::min(units, std::max<int64_t>(0, tick - before + each - 1) / each);
      };
      const int64_t first = unit_at(begin), last = unit_at(end);
      if (first < last && !run(*layers[i], first, last)) return false;
      before += units * each;
    }
    return true;
  });
}

// Calls f(A{}, clip) with the arithmetic that the layer is in.
template <class A, class F>
auto in_arithmetic(Layer<A>& layer, const F& f) {
  return layer.in_double ? f(double{}, layer.broad) : f(A{}, layer.own);
}

// One layer's verdict from its Gram matrix; a wider arithmetic is asked for until there is none.
template <class A>
Verdict judge(Layer<A>& layer, DType dtype) {
  return in_arithmetic(layer, [&](auto zero, auto& clip) {
    using G = decltype(zero);
    const SvcMatrix& w = *layer.w;
    const auto* sums = static_cast<const double*>(layer.gram.data());
    double trace = 0;
    for (int64_t i = 0; i < w.rows; ++i) trace += square<G>(sums, w.rows).line(i, 0)[i];
    constexpr bool narrow = sizeof(G) < sizeof(double);
    if (!(trace < (narrow ? 1e18 : 1e150)))  // nor NaN; fourth powers are still to come
      return narrow ? Verdict::wider : Verdict::nonfinite;
    const int64_t elements = square_elements<G>(w.rows);
    Scratch rounded(elements * int64_t(sizeof(G)));
    if (!rounded.data()) return Verdict::no_memory;
    std::copy(sums, sums + elements, static_cast<G*>(rounded.data()));
    layer.gram = Scratch();
    const double tolerance = svc_tolerance(dtype, w.rows);
    const bool carry = dtype == DType::float32 || dtype == DType::float64;  // 16-bit storage rounds too much for that
    return clip_spectrum(static_cast<G*>(rounded.data()), w.rows,
                         {w.bound, tolerance, w.bound * (1 - layer.attempts * tolerance / 4), carry}, clip);
  });
}

// Gram matrices and verdicts of the layers; those that need double are measured once more.
template <class T, class A>
bool judge_all(std::vector<Layer<A>*> layers, DType dtype, const Parallel& parallel) {
  while (!layers.empty()) {
    for (Layer<A>* layer : layers) {
      layer->gram = Scratch(int64_t(sizeof(double)) * in_arithmetic(*layer, [&](auto zero, auto&) {
                              return square_elements<decltype(zero)>(layer->w->rows);
                            }));
      if (!layer->gram.data()) return false;
    }
    share(
        parallel, layers,
        [](Layer<A>& layer) {
          const int64_t units =
              in_arithmetic(layer, [&](auto z, auto&) { return gram_units<decltype(z)>(layer.w->rows); });
          const double operations = double(layer.w->rows) * double(layer.w->rows) * double(layer.w->columns);
          return std::pair<int64_t, double>(units, operations / double(units));
        },
        [](Layer<A>& layer, int64_t begin, int64_t end) {
          return in_arithmetic(layer, [&](auto zero, auto&) {
            using G = decltype(zero);
            return gram<G, T>(*layer.w, static_cast<double*>(layer.gram.data()), begin, end);
          });
        });
    parallel(int64_t(layers.size()), int64_t(1) << 20, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) layers[i]->verdict = judge(*layers[i], dtype);
      return true;
    });
    std::vector<Layer<A>*> wider;
    for (Layer<A>* layer : layers) {
      if (layer->verdict == Verdict::no_memory) return false;
      if (layer->verdict == Verdict::wider) layer->in_double = true, wider.push_back(layer);
    }
    layers = wider;
  }
  return true;
}

template <class T>
bool project(const SvcMatrix* matrices, int64_t count, DType dtype, bool skip_nonfinite, const Parallel& parallel,
             SvcReport* report) {
  using A = Acc<T>;
  std::vector<Layer<A>> all(count);
  std::vector<Layer<A>*> open;
  for (int64_t i = 0; i < count; ++i) {
    all[i].w = matrices + i, all[i].report = report + i;
    all[i].in_double = matrices[i].bound < kSvcLeastBound || matrices[i].bound > kSvcLargestBound;
    open.push_back(&all[i]);
  }
  Reserve reserve;
  int64_t reserved = 0;
  std::atomic<bool> written{false};
  try {
    for (int round = 0; round < kRounds && !open.empty(); ++round) {
      if (!judge_all<T>(open, dtype, parallel)) return written;
      bool stop = false;
      std::vector<Layer<A>*> clips, again;
      for (Layer<A>* layer : open) {
        const auto [clipped, largest, certified] = in_arithmetic(*layer, [](auto, const auto& clip) {
          return std::tuple<int64_t, double, bool>(clip.clipped, clip.largest, clip.certified);
        });
        SvcReport& r = *layer->report;
        if (layer->verdict == Verdict::nonfinite) {
          r = {double(SvcState::nonfinite), 0, std::nan(""), 0};
          stop = stop || !skip_nonfinite;
        } else if (round == 0) {
          const bool clip = layer->verdict == Verdict::clip;
          r = {double(clip ? SvcState::clipped : SvcState::inside), double(clip ? clipped : 0), largest, 0};
        }
        r.certified = double(certified);
        if (layer->verdict == Verdict::clip) clips.push_back(layer);
        if (layer->verdict == Verdict::clip && !certified) again.push_back(layer);
        if (in_arithmetic(*layer, [](auto, const auto& clip) { return clip.reached; })) ++layer->attempts;
      }
      if (stop) {
        for (SvcReport* r = report; r < report + count; ++r)
          if (r->state != double(SvcState::nonfinite)) *r = {double(SvcState::inside), 0, r->largest, 0};
        return true;
      }
      for (const Layer<A>* layer : clips)
        if (round == 0)
          reserved =
              std::max({reserved, correction_bytes<A>(layer->w->rows), correction_bytes<double>(layer->w->rows)});
      if (round == 0 && reserved > 0 && !(reserve.scratch = Scratch(reserved)).data()) return false;
      share(
          parallel, clips,
          [](Layer<A>& layer) {
            const int64_t width =
                in_arithmetic(layer, [&](auto z, auto&) { return panel_columns<decltype(z)>(layer.w->rows); });
            const double operations = 4.0 * double(layer.w->rows) * double(width) *
                                      double(in_arithmetic(layer, [](auto, auto& clip) { return clip.by.k; }));
            return std::pair<int64_t, double>((layer.w->columns + width - 1) / width, operations);
          },
          [&](Layer<A>& layer, int64_t begin, int64_t end) {
            written = true;
            in_arithmetic(layer, [&](auto zero, auto& clip) {
              correct<decltype(zero), T>(*layer.w, clip.by, begin, end, reserve);
            });
            return true;
          });
      open = again;
    }
  } catch (...) {  // no memory. Before the first write nothing was changed, after it weights are clipped, not certified
    if (!written) throw;
  }
  return true;
}
