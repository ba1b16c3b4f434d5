"""Operations on pytrees and files that know no model: parameters, shardings, precision, metrics."""
