"""The lab: recipes, data, models, training runs, comparisons; needs the extra ``lab``. The method never imports it."""
