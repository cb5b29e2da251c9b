// One slider moves through an episode: its camera views (cells of one image each) and the line over its curves.
for (const card of document.querySelectorAll("article[data-times]")) {
  const times = card.dataset.times.split(",").map(Number), last = Number(card.dataset.last), rate = Number(card.dataset.rate);
  const slider = card.querySelector("input"), output = card.querySelector("output"), button = card.querySelector("button");
  const films = card.querySelectorAll(".film"), plot = card.querySelector(".curves"), line = card.querySelector(".now");
  const thumbs = [...card.querySelectorAll(".thumb")];
  let playing = null;
  const show = (cell) => {
    slider.value = cell;
    for (const film of films) film.style.backgroundPosition = `${times.length > 1 ? (100 * cell) / (times.length - 1) : 0}% 0`;
    for (const thumb of thumbs) thumb.classList.toggle("on", Number(thumb.dataset.cell) === cell);
    if (line) line.style.left = `${last > 0 ? (100 * times[cell]) / last : 0}%`;
    output.textContent = rate ? `${(times[cell] / rate).toFixed(1)} s · ${times[cell]}` : `${times[cell]}`;
  };
  const stop = () => { clearInterval(playing); playing = null; button.textContent = "▶"; button.ariaLabel = "play"; };
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => {
    if (playing) return stop();
    button.textContent = "❚❚"; button.ariaLabel = "stop";
    playing = setInterval(() => show((Number(slider.value) + 1) % times.length), Math.max(90, (1000 * last) / (rate || 10) / times.length));
  });
  plot?.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), wanted = ((event.clientX - box.left) / box.width) * last;
    stop();
    show(times.reduce((best, time, cell) => (Math.abs(time - wanted) < Math.abs(times[best] - wanted) ? cell : best), 0));
  });
  for (const thumb of thumbs) thumb.addEventListener("click", () => { stop(); show(Number(thumb.dataset.cell)); });
  show(0);
}
