"""JSON that is written: never NaN or infinity, which no other reader takes."""

import json

import numpy as np
import pytest

from hierjax.core import json_files
from hierjax.core.errors import UserError

CASES = {
  'decode/joint/levels/make/ece is nan': {
    'decode': {'n': 3, 'joint': {'fpa': 0.5, 'levels': {'make': {'ece': float('nan')}}}}
  },
  '1/prob/a is inf': [{'prob': {'a': 0.1}}, {'prob': {'a': np.float64('inf')}}],
  'top/0/1 is -inf': {'top': [('a', -np.inf), ['b', 1.0]]},
}


@pytest.mark.parametrize('place', CASES)
def test_what_is_not_finite_is_named(place):
  with pytest.raises(UserError, match='cannot be written as JSON') as e:
    json_files.dump(CASES[place])
  assert str(e.value).endswith(place)


def test_the_rest_is_plain_json():
  value = {'a': [1, 2.5, None, True, 'é\udc80'], 'b': {}}
  assert json.loads(json_files.dump(value)) == json_files.parse(json_files.dump(value)) == value
  assert json_files.dump(value, indent=2) == json.dumps(value, indent=2)
