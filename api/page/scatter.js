// Points on a canvas: drawn, moved, enlarged, caught with a lasso. It knows nothing of the service.

const MOST_PICTURES = 60; // in view at once
const AT_ONCE = 6; // pictures that are fetched
const MOST_KEPT = 400;
const PICTURE = 64; // pixels, with the room around it
const CLOSE = 3; // how much it is enlarged when pictures come
const LARGEST = 400;
const NEAR = 12; // pixels from the pointer to a point
const STEP = 60; // pixels that a key moves

/** `on`: {open(place), hover(place, x, y), select(places, more), picture(place) → an image that is loading}. */
export function scatter(canvas, on) {
  const pen = canvas.getContext("2d");
  let points = { x: new Float32Array(0), y: new Float32Array(0), group: new Int16Array(0), count: 0 };
  let colours = ["gray"];
  let hidden = new Uint8Array(0);
  let chosen = new Uint8Array(0);
  let view = { scale: 1, x: 0.5, y: 0.5 };
  let size = { width: 1, height: 1, ratio: 1 };
  let lasso = null; // [x, y, x, y, …] while one is drawn
  let lassoing = false;
  let asked = 0;
  let frames = null; // milliseconds of each frame, while they are measured
  const pictures = new Map();
  const fetching = new Set();
  const pointers = new Map();

  const base = () => 0.92 * Math.min(size.width, size.height);
  const across = (x) => (x - view.x) * view.scale * base() + size.width / 2;
  const down = (y) => size.height / 2 - (y - view.y) * view.scale * base();

  function draw() {
    asked = 0;
    const began = performance.now();
    pen.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
    pen.clearRect(0, 0, size.width, size.height);
    const radius = Math.min(5, 1.6 + Math.log2(1 + view.scale) * 0.8 + (points.count < 2000 ? 1 : 0));
    const seen = drawPoints(radius);
    if (view.scale >= CLOSE || points.count <= MOST_PICTURES) drawPictures(seen);
    if (lasso) drawLasso();
    frames?.push(performance.now() - began);
  }

  /** The places of what is in view. */
  function drawPoints(radius) {
    const factor = view.scale * base();
    const left = size.width / 2 - view.x * factor;
    const top = size.height / 2 + view.y * factor;
    const seen = [];
    const by = colours.map(() => []);
    for (let n = 0; n < points.count; n++) {
      if (hidden[n]) continue;
      const x = points.x[n] * factor + left;
      const y = top - points.y[n] * factor;
      if (x < -radius || y < -radius || x > size.width + radius || y > size.height + radius) continue;
      seen.push(n);
      by[points.group[n]].push(x, y);
    }
    pen.globalAlpha = seen.length > 5000 ? 0.7 : 0.9;
    by.forEach((places, group) => {
      pen.fillStyle = colours[group];
      if (radius < 3 || seen.length > 3000) {
        for (let n = 0; n < places.length; n += 2) pen.fillRect(places[n] - radius, places[n + 1] - radius, 2 * radius, 2 * radius);
        return;
      }
      pen.beginPath();
      for (let n = 0; n < places.length; n += 2) {
        pen.moveTo(places[n] + radius, places[n + 1]);
        pen.arc(places[n], places[n + 1], radius, 0, 7);
      }
      pen.fill();
    });
    pen.globalAlpha = 1;
    drawChosen(seen, radius);
    return seen;
  }

  function drawChosen(seen, radius) {
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (const n of seen) if (chosen[n]) pen.rect(across(points.x[n]) - radius - 1, down(points.y[n]) - radius - 1, 2 * radius + 2, 2 * radius + 2);
    pen.stroke();
  }

  /** One picture where several would cover each other. */
  function drawPictures(seen) {
    const taken = new Set();
    const wanted = [];
    for (const n of seen) {
      const x = across(points.x[n]);
      const y = down(points.y[n]);
      const cell = `${Math.floor(x / PICTURE)} ${Math.floor(y / PICTURE)}`;
      if (taken.has(cell)) continue;
      taken.add(cell);
      wanted.push(n);
      const picture = pictures.get(n);
      if (picture?.naturalWidth && picture.complete) drawPicture(picture, n, x, y);
      if (wanted.length >= MOST_PICTURES) break;
    }
    fetchSome(wanted);
  }

  function drawPicture(picture, n, x, y) {
    const scale = (PICTURE - 8) / Math.max(picture.naturalWidth, picture.naturalHeight);
    const width = picture.naturalWidth * scale;
    const height = picture.naturalHeight * scale;
    pen.drawImage(picture, x - width / 2, y - height / 2, width, height);
    pen.lineWidth = chosen[n] ? 3 : 1.5;
    pen.strokeStyle = chosen[n] ? getComputedStyle(canvas).color : colours[points.group[n]];
    pen.strokeRect(x - width / 2, y - height / 2, width, height);
  }

  /** Only what is in view, and a few at once. */
  function fetchSome(wanted) {
    for (const n of wanted) {
      if (fetching.size >= AT_ONCE) return;
      if (pictures.has(n)) continue;
      const picture = on.picture(n);
      const done = () => {
        fetching.delete(n);
        redraw();
      };
      fetching.add(n);
      pictures.set(n, picture);
      picture.addEventListener("load", done, { once: true });
      picture.addEventListener("error", done, { once: true });
      if (pictures.size > MOST_KEPT) pictures.delete(pictures.keys().next().value);
    }
  }

  function drawLasso() {
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 4]);
    pen.beginPath();
    for (let n = 0; n < lasso.length; n += 2) pen.lineTo(lasso[n], lasso[n + 1]);
    pen.closePath();
    pen.stroke();
    pen.setLineDash([]);
  }

  function redraw() {
    asked ||= requestAnimationFrame(draw);
  }

  function zoom(factor, x = size.width / 2, y = size.height / 2) {
    const scale = Math.min(LARGEST, Math.max(0.5, view.scale * factor));
    const before = [(x - size.width / 2) / (view.scale * base()), (size.height / 2 - y) / (view.scale * base())];
    const share = 1 - view.scale / scale;
    view = { scale, x: view.x + before[0] * share, y: view.y + before[1] * share };
    redraw();
  }

  function move(x, y) {
    view.x -= x / (view.scale * base());
    view.y += y / (view.scale * base());
    view.x = Math.min(1.5, Math.max(-0.5, view.x));
    view.y = Math.min(1.5, Math.max(-0.5, view.y));
    redraw();
  }

  function whole() {
    view = { scale: 1, x: 0.5, y: 0.5 };
    redraw();
  }

  function nearest(x, y) {
    let best = -1;
    let least = (view.scale >= CLOSE ? 2 * NEAR : NEAR) ** 2;
    for (let n = 0; n < points.count; n++) {
      if (hidden[n]) continue;
      const far = (across(points.x[n]) - x) ** 2 + (down(points.y[n]) - y) ** 2;
      if (far < least) [best, least] = [n, far];
    }
    return best;
  }

  function within(line) {
    const inside = [];
    for (let n = 0; n < points.count; n++) if (!hidden[n] && encloses(line, across(points.x[n]), down(points.y[n]))) inside.push(n);
    return inside;
  }

  // The pointer: one moves, or draws a lasso; two enlarge.

  const placeOf = ({ clientX, clientY }) => {
    const { left, top } = canvas.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  };
  let travelled = 0;

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    const place = placeOf(event);
    pointers.set(event.pointerId, place);
    travelled = 0;
    lasso = pointers.size === 1 && (lassoing || event.shiftKey) ? [place.x, place.y] : null;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = placeOf(event);
    const last = pointers.get(event.pointerId);
    if (!last) return on.hover(nearest(now.x, now.y), now.x, now.y);
    travelled += Math.hypot(now.x - last.x, now.y - last.y);
    if (lasso) {
      lasso.push(now.x, now.y);
      redraw();
    } else if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const factor = Math.hypot(now.x - other.x, now.y - other.y) / Math.max(1, Math.hypot(last.x - other.x, last.y - other.y));
      zoom(factor, other.x, other.y);
    } else if (travelled > 3) {
      move(now.x - last.x, now.y - last.y);
    }
    pointers.set(event.pointerId, now);
  });
  const release = (event) => {
    const place = pointers.get(event.pointerId);
    pointers.delete(event.pointerId);
    if (!place) return;
    const line = lasso;
    lasso = null;
    redraw();
    if (event.type === "pointercancel") return;
    if (line?.length > 6) on.select(within(line), event.ctrlKey || event.metaKey);
    else if (travelled <= 3 && !pointers.size) {
      const n = nearest(place.x, place.y);
      if (n >= 0) on.open(n);
    }
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => on.hover(-1));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = placeOf(event);
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), x, y);
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => {
    const { x, y } = placeOf(event);
    zoom(2, x, y);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey) return;
    const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    if (moves[event.key]) move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") whole();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  new ResizeObserver(() => {
    const { width, height } = canvas.getBoundingClientRect();
    if (!width) return;
    size = { width, height, ratio: Math.min(2, devicePixelRatio || 1) };
    canvas.width = Math.round(width * size.ratio);
    canvas.height = Math.round(height * size.ratio);
    draw();
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return {
    zoom,
    whole,
    redraw,
    /** {x, y: numbers from 0 to 1; count}. */
    show(some) {
      points = { ...some, group: new Int16Array(some.count) };
      hidden = new Uint8Array(some.count);
      chosen = new Uint8Array(some.count);
      pictures.clear();
      whole();
    },
    /** The group of each point, and the colour of each group. */
    colour(groups, colourOf) {
      points.group = groups;
      colours = colourOf;
      redraw();
    },
    choose(places) {
      chosen.fill(0);
      for (const n of places) chosen[n] = 1;
      redraw();
    },
    hide(places) {
      for (const n of places) hidden[n] = 1;
      redraw();
    },
    /** With the lasso, the pointer selects instead of moving. */
    lasso(isOn) {
      lassoing = isOn;
    },
    /** Where a point is on the canvas. */
    at: (n) => ({ x: across(points.x[n]), y: down(points.y[n]) }),
    /** Milliseconds that drawing took, of each frame from now on: for benchmarks. */
    measure() {
      return (frames = []);
    },
  };
}

/** Whether a closed line goes around a place. */
function encloses(line, x, y) {
  let inside = false;
  for (let n = 0, last = line.length - 2; n < line.length; last = n, n += 2) {
    const [x1, y1, x2, y2] = [line[n], line[n + 1], line[last], line[last + 1]];
    if ((y1 > y) !== (y2 > y) && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  }
  return inside;
}
