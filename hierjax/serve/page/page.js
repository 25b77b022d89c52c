'use strict';
// Names come from anyone's taxonomy and files: they are only ever set as text.
const byId = id => document.getElementById(id);
const PER_REQUEST = 8;
const results = [];  // {file, url, record, view, image, maps, body}
const COLOURS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const SHARP = 7, SIDE = 384;  // places from which on a map is drawn smoothly; pixels

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const percent = p => p >= 0.9995 ? '100 %' : (100 * p).toFixed(1) + ' %';

function row(level, name, p) {
  const node = element('div', 'row'), label = element('span');
  label.append(element('small', '', level), element('b', '', name));
  const bar = element('progress');
  bar.max = 1;
  bar.value = p;
  bar.setAttribute('aria-hidden', 'true');
  node.append(label, bar, element('output', '', percent(p)));
  return node;
}

// The path as a tree: each level below the one before it, by all levels together, and what the level's head says alone.
function tree(record) {
  const root = element('ul', 'tree');
  let list = root;
  for (const [level, name] of Object.entries(record.path || {})) {
    const item = element('li');
    item.append(row(level, name, record.prob[level]));
    const candidates = (record.top[level] || []).slice(0, 3);
    if (candidates.length) {
      const text = candidates.map(([other, p]) => other + ' ' + percent(p)).join(', ');
      item.append(element('div', 'others', 'this level alone: ' + text));
    }
    list.append(item);
    list = element('ul', 'tree');
    item.append(list);
  }
  list.remove();
  for (const [level, names] of Object.entries(record.classes || {})) {
    const item = element('li');
    if (!names.length) item.append(element('div', 'others', level + ': none'));
    for (const name of names) item.append(row(level, name, record.prob[level][name]));
    root.append(item);
  }
  return root;
}

// A map as a picture of one pixel a place: the hotter, the brighter and the less transparent.
function coloured(map) {
  const canvas = element('canvas'), context = canvas.getContext('2d');
  [canvas.width, canvas.height] = [map[0].length, map.length];
  const pixels = context.createImageData(canvas.width, canvas.height);
  map.flat().forEach((value, i) => {
    const place = value / 255 * (COLOURS.length - 1), k = Math.min(Math.floor(place), COLOURS.length - 2);
    const mix = COLOURS[k].map((c, j) => c + (place - k) * (COLOURS[k + 1][j] - c));
    pixels.data.set([...mix, 0.75 * value], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The image, darkened, under the heat map of a level, where the model sees it.
async function heated({url, record, view}, level) {
  const image = element('img'), canvas = element('canvas'), context = canvas.getContext('2d');
  image.src = url;
  await image.decode();
  const scale = SIDE / Math.max(image.naturalWidth, image.naturalHeight);
  const w = canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  const h = canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  context.drawImage(image, 0, 0, w, h);
  context.fillStyle = 'rgba(0, 0, 0, .5)';
  context.fillRect(0, 0, w, h);
  const small = Math.min(w, h), large = Math.max(w, h), map = record.maps[level];
  const sides = {squash: [w, h], crop: [small, small], pad: [large, large]}[view.resize];
  const [across, down] = sides.map(side => side * view.share);
  context.imageSmoothingEnabled = Math.min(map.length, map[0].length) >= SHARP;
  context.imageSmoothingQuality = 'high';
  context.drawImage(coloured(map), (w - across) / 2, (h - down) / 2, across, down);
  return canvas.toDataURL('image/jpeg', 0.85);
}

// Buttons under the image, one a level, which lay its heat map over the image.
function showMaps(result) {
  const {image, maps, record, url} = result, levels = Object.keys(record && record.maps || {});
  [image.src, image.alt] = [url, ''];
  maps.replaceChildren();
  if (!levels.length) return;
  const intro = 'Heat maps show where the evidence lies.';
  const group = element('div', 'levels'), text = element('p', 'quiet', intro);
  group.setAttribute('role', 'group');
  group.setAttribute('aria-label', 'Heat map of a level');
  for (const level of levels) {
    const button = element('button', '', level);
    button.type = 'button';
    button.setAttribute('aria-pressed', 'false');
    button.addEventListener('click', async () => {
      const on = button.getAttribute('aria-pressed') === 'false';
      for (const other of group.children) other.setAttribute('aria-pressed', String(on && other === button));
      const map = record.maps[level], places = `${map[0].length} × ${map.length} places`;
      const name = record.path[level], isFound = map.flat().some(x => x);
      const title = isFound ? `Where the evidence for ${name} lies: ${places}` : `No evidence for ${name} in any of ${places}`;
      const source = on ? await heated(result, level) : url;
      if (button.getAttribute('aria-pressed') !== String(on)) return;
      [image.src, image.alt, text.textContent] = on ? [source, title, title] : [source, '', intro];
    });
    group.append(button);
  }
  maps.append(group, text);
}

function similarImages(rows) {
  const list = element('ul', 'similar');
  for (const {file, classes, cosine, image} of rows) {
    const item = element('li'), name = Object.values(classes).pop() || file;
    if (image && image.startsWith('data:image/jpeg;base64,')) {
      const picture = element('img');
      [picture.src, picture.alt] = [image, ''];
      item.append(picture);
    }
    item.title = [file, ...Object.values(classes)].join(', ');
    item.append(element('span', '', name), element('span', 'quiet', cosine.toFixed(2)));
    list.append(item);
  }
  return list;
}

function show(result) {
  const {body, record} = result;
  showMaps(result);
  body.replaceChildren(element('h2', '', result.file.name));
  if (!record) return body.append(element('p', 'quiet', 'waits ...'));
  if (record.error) return body.append(element('p', 'error', record.error));
  if (record.answer) {
    const {level, name, prob, reason} = record.answer;
    const text = level === null ? 'No answer' : `${name} (${level}), ${percent(prob)} sure`;
    const answer = element('p', 'answer');
    answer.append(element('b', '', text), document.createElement('br'), element('span', 'quiet', reason));
    body.append(answer);
  }
  if (record.new) body.append(element('p', 'answer', record.new));
  body.append(tree(record));
  if (record.outside !== undefined) {
    body.append(element('p', 'quiet', percent(record.outside) + ' that it is none of these classes'));
  }
  if (record.similar) {
    const title = 'Most similar training images, with the cosine of the features';
    body.append(element('p', 'quiet heading', title), similarImages(record.similar));
  }
}

function add(files) {
  const images = [...files].filter(file => file.size);
  for (const file of images) {
    const card = element('li', 'card'), figure = element('div'), body = element('div');
    const image = element('img'), maps = element('div');
    const result = {file, image, maps, body, url: URL.createObjectURL(file), record: null};
    figure.append(image, maps);
    card.append(figure, body);
    byId('results').append(card);
    results.push(result);
    show(result);
  }
  return predict(results.slice(results.length - images.length));
}

async function send(part) {
  const form = new FormData();
  for (const {file} of part) form.append('images', file, file.name);
  const token = byId('token').value, classes = byId('classes').value;
  const answer = await fetch('predict?top=3&maps=1&similar=4&classes=' + encodeURIComponent(classes), {
    method: 'POST', body: form, headers: token ? {Authorization: 'Bearer ' + token} : {},
  });
  if (answer.status === 401) byId('token-label').hidden = false;
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  // a form changes quotes in the names of files
  content.predictions.forEach((record, i) => {
    part[i].record = {...record, file: part[i].file.name};
    part[i].view = content.view;
  });
}

async function predict(chosen) {
  byId('problem').textContent = '';
  for (let i = 0; i < chosen.length; i += PER_REQUEST) {
    const part = chosen.slice(i, i + PER_REQUEST);
    byId('state').textContent = `${i} of ${chosen.length} images`;
    try {
      await send(part);
    } catch (error) {
      byId('problem').textContent = error.message;
      break;
    } finally {
      part.forEach(show);
    }
  }
  const done = results.filter(result => result.record).length;
  byId('state').textContent = results.length ? `${done} of ${results.length} images predicted` : '';
  for (const id of ['again', 'csv', 'clear']) byId(id).disabled = !results.length;
}

function flat(value, prefix, into) {
  for (const [key, item] of Object.entries(value)) {
    if (Array.isArray(item)) {
      if (item.every(x => typeof x === 'string')) into[prefix + key] = item.join('|');
    } else if (item !== null && typeof item === 'object') {
      flat(item, prefix + key + '.', into);
    } else {
      into[prefix + key] = item;
    }
  }
  return into;
}

// A spreadsheet would compute a text that begins like a formula.
function cell(value) {
  const text = value === undefined || value === null ? '' : String(value);
  const safe = typeof value === 'string' && /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
  return '"' + safe.replaceAll('"', '""') + '"';
}

function csv() {
  const rows = results.filter(result => result.record).map(result => flat(result.record, '', {}));
  const columns = [...new Set(rows.flatMap(Object.keys))];
  return [columns, ...rows.map(one => columns.map(name => one[name]))]
    .map(line => line.map(cell).join(',') + '\r\n').join('');
}

byId('files').addEventListener('change', event => {
  add(event.target.files);
  event.target.value = '';
});
byId('form').addEventListener('submit', event => {
  event.preventDefault();
  predict(results);
});
byId('csv').addEventListener('click', () => {
  const link = element('a');
  link.href = URL.createObjectURL(new Blob([csv()], {type: 'text/csv'}));
  link.download = 'predictions.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
byId('clear').addEventListener('click', () => {
  results.splice(0).forEach(result => URL.revokeObjectURL(result.url));
  byId('results').replaceChildren();
  predict([]);
  byId('files').focus();
});
document.addEventListener('paste', event => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
for (const name of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(name, event => {
    event.preventDefault();
    byId('drop').classList.toggle('over', name === 'dragenter' || name === 'dragover');
    if (name === 'drop') add(event.dataTransfer.files);
  });
}
