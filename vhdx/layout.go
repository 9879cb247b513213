package vhdx

// layout is where the structures of an open image lie.
type layout struct {
	log, bat, meta extent
	others         []regionEntry
}

// structures lists everything in the file but blocks.
func (l *layout) structures() []extent {
	all := []extent{{0, headerSectionLen}, l.log, l.bat, l.meta}
	for _, e := range l.others {
		all = append(all, e.extent())
	}
	return all
}
