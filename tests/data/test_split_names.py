"""Names of splits: which names mean one, and what the splits of a data set are called."""

from types import SimpleNamespace

import pytest

from hierjax.core.errors import UserError
from hierjax.data.findings import Findings
from hierjax.data.split_names import split_of, unify


@pytest.mark.parametrize(
  ('split', 'names'),
  [
    ('train', 'train Train TRAIN training training_set imgs-train train2017 seg_train trainset'),
    ('train', 'TrainImages train-00 partial-train my.train X_train trainimages Trn TRAIN_SET'),
    ('val', 'val VALID validation dev val2017 dev-clean validation_images ValImages valset'),
    ('test', 'test testing eval holdout hold-out Holdout_Set test_set imgs_test TestA testdata'),
    (None, 'figures trains tested contest latest evaluate devil training_test train-val x 12 _'),
    (None, 'bullet_train_station Testarossa valley'),
  ],
)
def test_split_of(split, names):
  assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)
  assert split_of('Test images') == 'test' and split_of('images for training') == 'train'
  assert split_of('Prüfung test') == 'test' and split_of('') is None


@pytest.mark.parametrize(
  ('names', 'unified', 'notes'),
  [
    ('train val test', 'train val test', 0),
    ('training_set test_set', 'train test', 2),
    ('Train VAL', 'train val', 2),
    ('train validation dev', 'train val dev', 2),
    ('train validation dev val', 'train validation dev val', 1),
    ('train_1 train_2 val', 'train train val', 2),
    ('train train_extra val', 'train train_extra val', 1),
    ('train val test_seen test_unseen', 'train val test_seen test_unseen', 1),
    ('train val test test_hard', 'train val test test_hard', 1),
    ('fold1 fold2', 'fold1 fold2', 0),
    ('Train train', 'Train train', 0),
  ],
)
def test_unify(names, unified, notes):
  findings = Findings()
  options = SimpleNamespace(root='data', train='train', val='val')
  assert unify(options, names.split(), findings) == unified.split()
  assert len(findings.notes) == notes, findings.notes


def test_names_that_are_asked_for_stay():
  options = SimpleNamespace(root='data', train='training_set', val='dev')
  names = ['training_set', 'dev', 'validation', 'testing']
  assert unify(options, names, Findings()) == ['training_set', 'dev', 'val', 'test']
  options.val = 'val'
  with pytest.raises(UserError, match="'val_seen', 'val_unseen' may each be val: name one with"):
    unify(options, ['train', 'val_seen', 'val_unseen'], Findings())
