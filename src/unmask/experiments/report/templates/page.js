"use strict";
(() => {
  const record = JSON.parse(document.getElementById("record").textContent);
  const at = (id) => document.getElementById(id);

  // ---- texts: show the pair of the chosen latent and step count
  const pairs = [...document.querySelectorAll(".pair")];
  if (pairs.length) {
    const chosen = { latent: at("pair-latent"), steps: at("pair-steps") };
    const choose = () => {
      for (const pair of pairs) {
        pair.hidden = pair.dataset.latent !== chosen.latent.value || pair.dataset.steps !== chosen.steps.value;
      }
    };
    chosen.latent.addEventListener("change", choose);
    chosen.steps.addEventListener("change", choose);
    at("pair-shared").addEventListener("change", (event) => {
      at("pairs").classList.toggle("plain", !event.target.checked);
    });
    choose();
  }

  // ---- download of the data
  at("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1)], { type: "application/json" }));
    link.download = at("download").dataset.file;
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // ---- the player
  const traces = record.player || [];
  if (!traces.length || !at("player-box")) return;
  const stage = at("player-stage"), slider = at("player-slider"), bars = at("player-bars"), play = at("player-play");
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  let trace = traces[0], tokens = [], reveals = [], call = 0, timer = null, untouched = true;

  // Spaces before a token stay outside its block: so a block is a word, and lines break between words.
  const block = (piece, position) => {
    const blank = piece.match(/^\s*/)[0], body = piece.slice(blank.length);
    const token = document.createElement("span");
    token.textContent = body || (blank.includes("\n") ? "↵" : "␣");
    if (!body) token.classList.add("blank");
    const when = reveals[position];
    token.title = when === 0 ? "given" : when === Infinity ? "never revealed" : `revealed by call ${when} of ${trace.frames.length}`;
    stage.append(...(body ? [position ? blank : "", token] : [token, blank]));
    return token;
  };

  const load = (index) => {
    trace = traces[index];
    reveals = trace.pieces.map(() => 0);
    const known = new Set(trace.frames.flat());
    trace.frames.forEach((frame, k) => frame.forEach((position) => { reveals[position] = k + 1; }));
    stage.replaceChildren();
    tokens = trace.pieces.map(block);
    stage.dataset.masked = known.size;
    slider.max = trace.frames.length;
    const most = Math.max(1, ...trace.frames.map((frame) => frame.length));
    bars.replaceChildren(...trace.frames.map((frame) => {
      const bar = document.createElement("i");
      bar.style.height = `${(100 * frame.length) / most}%`;
      return bar;
    }));
  };

  const show = (next) => {
    const calls = trace.frames.length;
    call = Math.min(Math.max(next, 0), calls);
    let revealed = 0, total = 0;
    tokens.forEach((token, position) => {
      const hidden = reveals[position] > call;
      token.classList.toggle("masked", hidden);
      token.classList.toggle("fresh", call > 0 && reveals[position] === call);
      token.setAttribute("aria-hidden", String(hidden));
      if (reveals[position] > 0) { total += 1; revealed += hidden ? 0 : 1; }
    });
    [...bars.children].forEach((bar, k) => {
      bar.classList.toggle("past", k < call);
      bar.classList.toggle("now", k === call - 1);
    });
    const fresh = call ? trace.frames[call - 1].length : 0;
    const alpha = call && trace.alphas.length ? `, from alpha ${trace.alphas[call - 1].toFixed(2)}` : "";
    const note = call ? `${plural(fresh, "token")} new${alpha}, ${revealed} of ${total}` : `${plural(total, "token")} masked`;
    at("player-call").textContent = `call ${call} of ${calls}`;
    at("player-note").textContent = note;
    slider.value = call;
    slider.setAttribute("aria-valuetext", `call ${call} of ${calls}: ${note}`);
    if (!timer) at("player-live").textContent = `call ${call} of ${calls}: ${note}`;
  };

  const pause = () => {
    clearTimeout(timer);
    timer = null;
    play.setAttribute("aria-label", "Play");
    play.classList.remove("playing");
  };
  const tick = () => {
    show(call + 1);
    if (call >= trace.frames.length) pause();
    else timer = setTimeout(tick, 1000 / Number(at("player-speed").value));
  };
  const toggle = () => {
    if (timer) return pause();
    if (untouched || call >= trace.frames.length) show(0);
    untouched = false;
    play.setAttribute("aria-label", "Pause");
    play.classList.add("playing");
    timer = setTimeout(tick, 1000 / Number(at("player-speed").value));
  };
  const go = (next) => { untouched = false; pause(); show(next); };

  traces.forEach((each, index) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "player-trace", value: String(index), checked: index === 0 });
    input.addEventListener("change", () => { pause(); load(index); show(untouched ? Math.ceil(trace.frames.length / 2) : 0); });
    const words = document.createElement("span");
    words.textContent = each.title;
    label.append(input, words);
    at("player-traces").append(label);
  });
  play.addEventListener("click", toggle);
  at("player-first").addEventListener("click", () => go(0));
  at("player-back").addEventListener("click", () => go(call - 1));
  at("player-next").addEventListener("click", () => go(call + 1));
  at("player-last").addEventListener("click", () => go(trace.frames.length));
  slider.addEventListener("input", () => go(Number(slider.value)));
  at("player-box").addEventListener("keydown", (event) => {
    const kind = event.target.tagName, own = kind === "SELECT" || event.target.type === "radio";
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (event.altKey || event.ctrlKey || event.metaKey || own) return;
    if (event.key === " " && kind !== "BUTTON") toggle();
    else if (event.key in moves && event.target !== slider) go(call + moves[event.key]);
    else return;
    event.preventDefault();
  });
  load(0);
  show(Math.ceil(trace.frames.length / 2)); // start half way, which shows at a glance what the player does
})();
