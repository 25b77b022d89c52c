'use strict';
// Names come from anyone's taxonomy and files: they are only ever set as text.
const byId = id => document.getElementById(id);
const PER_REQUEST = 8;
const results = [];  // {file, url, record, body}

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

// The path as a tree: each level below the one before it, with the head's other candidates.
function tree(record) {
  const root = element('ul', 'tree');
  let list = root;
  for (const [level, name] of Object.entries(record.path || {})) {
    const item = element('li');
    item.append(row(level, name, record.prob[level]));
    const others = (record.top[level] || []).filter(([other]) => other !== name).slice(0, 2);
    if (others.length) {
      const text = others.map(([other, p]) => other + ' ' + percent(p)).join(', ');
      item.append(element('div', 'others', 'or ' + text));
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

function show(result) {
  const {body, record} = result;
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
}

function add(files) {
  const images = [...files].filter(file => file.size);
  for (const file of images) {
    const card = element('li', 'card'), image = element('img'), body = element('div');
    const result = {file, body, url: URL.createObjectURL(file), record: null};
    image.src = result.url;
    image.alt = '';
    card.append(image, body);
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
  const answer = await fetch('predict?top=3&classes=' + encodeURIComponent(classes), {
    method: 'POST', body: form, headers: token ? {Authorization: 'Bearer ' + token} : {},
  });
  if (answer.status === 401) byId('token-label').hidden = false;
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  // a form changes quotes in the names of files
  content.predictions.forEach((record, i) => { part[i].record = {...record, file: part[i].file.name}; });
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
