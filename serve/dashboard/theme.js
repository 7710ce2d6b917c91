// Sets the theme that was chosen last before anything is painted; without one the system decides.
{
  const theme = localStorage.getItem("loam-theme");
  if (theme) document.documentElement.dataset.theme = theme;
}
