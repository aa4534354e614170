//! Kernel modules and agents are ELF: what a module depends on, what of it can be left out, and
//! whether a program can run in a guest that has no loader.

use std::collections::HashSet;

use object::{
    LittleEndian,
    build::{
        Id,
        elf::{Builder, SectionData},
    },
    elf,
    read::elf::{FileHeader, ProgramHeader, SectionHeader},
};

/// Sections the guest kernel can load a module without. BTF describes types to BPF programs, ORC lets
/// an oops unwind exactly (the kernel sorts both its tables at each load, a fifth of what a load
/// without signature costs); nobody reads the rest at run time.
const NEEDLESS_SECTIONS: &[&[u8]] =
    &[b".BTF", b".BTF_ids", b".orc_unwind", b".orc_unwind_ip", b".comment", b".note.GNU-stack"];

/// What of a kernel module goes into the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModuleForm {
    /// Without the signature, BTF, unwind tables and unreferenced local symbols: a quarter smaller,
    /// and loaded in about a tenth of the instructions, nearly all of which check the signature.
    /// What loads the image is to vouch for it as a whole. The kernel notes the missing signature
    /// once (taint `E`) and refuses such modules under lockdown or `module.sig_enforce`.
    #[default]
    Lean,
    /// Byte for byte, signature included.
    AsShipped,
}

/// What a module says about itself in `.modinfo`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct ModuleInfo {
    /// Modules whose symbols it uses.
    pub(crate) depends: Vec<String>,
    /// Modules to load before it, where there are such.
    pub(crate) before: Vec<String>,
    /// Modules to load after it, where there are such.
    pub(crate) after: Vec<String>,
}

/// Reads the `.modinfo` of an uncompressed module.
pub(crate) fn module_info(data: &[u8]) -> Result<ModuleInfo, String> {
    let header = header(data)?;
    let sections = header.sections(LittleEndian, data).map_err(|e| e.to_string())?;
    let (_, section) = sections
        .section_by_name(LittleEndian, b".modinfo")
        .ok_or("it has no .modinfo section, so it is no kernel module")?;
    let bytes = section.data(LittleEndian, data).map_err(|e| e.to_string())?;
    let mut info = ModuleInfo::default();
    for field in bytes.split(|&byte| byte == 0) {
        let Ok(field) = str::from_utf8(field) else { continue };
        match field.split_once('=') {
            Some(("depends", list)) => {
                info.depends
                    .extend(list.split(',').filter(|name| !name.is_empty()).map(Into::into));
            }
            Some(("softdep", text)) => read_softdep(text, &mut info),
            _ => {}
        }
    }
    Ok(info)
}

/// `pre: a b post: c`
fn read_softdep(text: &str, info: &mut ModuleInfo) {
    let mut into = None;
    for word in text.split_ascii_whitespace() {
        match word {
            "pre:" => into = Some(&mut info.before),
            "post:" => into = Some(&mut info.after),
            name => {
                if let Some(list) = into.as_deref_mut() {
                    list.push(name.into());
                }
            }
        }
    }
}

/// Brings an uncompressed module into `form`.
pub(crate) fn shape_module(data: Vec<u8>, form: ModuleForm) -> Result<Vec<u8>, String> {
    match form {
        ModuleForm::AsShipped => Ok(data),
        ModuleForm::Lean => lean(&data).map_err(|e| e.to_string()),
    }
}

fn lean(data: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut module = Builder::read(data)?;
    let mut gone = Vec::new();
    for section in &mut module.sections {
        let debug = section.name.as_slice().starts_with(b".debug_");
        if debug || NEEDLESS_SECTIONS.contains(&section.name.as_slice()) {
            section.delete = true;
            gone.push(section.id());
        }
    }
    let mut used = HashSet::new();
    for section in &mut module.sections {
        if section.sh_info_section.is_some_and(|target| gone.contains(&target)) {
            section.delete = true;
        }
        if let (false, SectionData::Relocation(relocations)) = (section.delete, &section.data) {
            used.extend(
                relocations.iter().filter_map(|relocation| relocation.symbol).map(|id| id.index()),
            );
        }
    }
    for symbol in &mut module.symbols {
        let local = symbol.st_bind() == elf::STB_LOCAL;
        if local && !used.contains(&symbol.id().index()) {
            symbol.delete = true;
        }
    }
    module.delete_orphans();
    let mut out = Vec::with_capacity(data.len());
    module.write(&mut out)?;
    Ok(out)
}

fn header(data: &[u8]) -> Result<&elf::FileHeader64<LittleEndian>, String> {
    let header = elf::FileHeader64::<LittleEndian>::parse(data)
        .map_err(|_| "it is not a 64-bit ELF file".to_owned())?;
    if header.e_machine(LittleEndian) != elf::EM_X86_64 {
        return Err("it is for another processor".into());
    }
    Ok(header)
}

/// The interpreter an executable names, if any; an error if it is no x86-64 executable.
pub(crate) fn interpreter(data: &[u8]) -> Result<Option<String>, String> {
    let header = header(data)?;
    if ![elf::ET_EXEC, elf::ET_DYN].contains(&header.e_type(LittleEndian)) {
        return Err("it is not an executable".into());
    }
    for segment in header.program_headers(LittleEndian, data).map_err(|e| e.to_string())? {
        if let Some(path) = segment.interpreter(LittleEndian, data).map_err(|e| e.to_string())? {
            return Ok(Some(String::from_utf8_lossy(path).into_owned()));
        }
    }
    Ok(None)
}

/// Whether an uncompressed kernel carries the note that lets it be entered directly (PVH).
pub(crate) fn has_pvh_entry(kernel: &[u8]) -> Result<bool, String> {
    const XEN_ELFNOTE_PHYS32_ENTRY: elf::NoteType = elf::NoteType(18);
    let header = header(kernel)?;
    for segment in header.program_headers(LittleEndian, kernel).map_err(|e| e.to_string())? {
        let Some(mut notes) = segment.notes(LittleEndian, kernel).map_err(|e| e.to_string())?
        else {
            continue;
        };
        while let Some(note) = notes.next().map_err(|e| e.to_string())? {
            if note.name() == b"Xen" && note.n_type(LittleEndian) == XEN_ELFNOTE_PHYS32_ENTRY {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
